"""Bundles with random weights, made on the spot by the project's own export: speed does not depend on the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from ssn.core.bundle import Bundle
from ssn.core.scoring import Calibration
from ssn.core.volume import read_volume
from ssn.runtime.backend import StageTimes, run_batches
from ssn.runtime.onnxruntime import OnnxRuntimeBackend

if TYPE_CHECKING:
    from torch import Tensor

    from ssn.train.checkpoint import Detector
    from ssn.train.network import FeatureNetwork, ModelConfig

ModelName = Literal["wide_resnet50_2", "wide_resnet50_2-slab", "compact"]
MODELS: tuple[ModelName, ...] = get_args(ModelName)


def model_config(model: ModelName) -> ModelConfig:
    """Return the configuration of a model."""
    from ssn.train.network import ModelConfig

    if model == "compact":
        return ModelConfig.compact()
    return ModelConfig(pool="slab") if model == "wide_resnet50_2-slab" else ModelConfig()


def make_detector(model: ModelName, scan: Path, config: ModelConfig | None = None) -> Detector:
    """Build an untrained detector whose activations have a trained one's size on this scan.

    `config` is another than the model's own.
    """
    import torch

    from ssn.train.checkpoint import build_detector
    from ssn.train.features import stack_for
    from ssn.train.network import FeatureNetwork

    torch.manual_seed(0)
    config = config or model_config(model)
    network = FeatureNetwork(config, weights="none").eval()
    stack, each = stack_for(network, read_volume(scan)), config.slices_a_window
    middle = len(stack.occupancy) // 2 * each
    _settle(network, torch.from_numpy(stack.slices[middle : middle + 4 * each, None]))
    detector = build_detector(config, network, seed=0)
    detector.flow.eval()
    return detector


def make_bundle(
    model: ModelName, folder: Path, scan: Path, config: ModelConfig | None = None
) -> tuple[Detector, Bundle]:
    """Export an untrained detector; its calibration is that of its own answers, so that z-scores have their scale."""
    from ssn.export.onnx import export_bundle

    detector = make_detector(model, scan, config)
    config = detector.config
    shape = (config.grid.windows, detector.network.cells, detector.network.cells)

    def export(mean: float, deviation: float) -> Bundle:
        calibration = Calibration(
            mean=np.full(shape, mean, np.float32),
            deviation=np.full(shape, deviation, np.float32),
            gain=1.0,
            sigma=2.0,
            threshold=3.0,
            threshold_rate=0.01,
            healthy_scores=np.arange(20, dtype=np.float32),
        )
        return export_bundle(detector, calibration, folder, name=model, modality="none", overwrite=True)

    bundle = export(0.0, 1.0)
    stack = bundle.spec.cut(read_volume(scan))
    with OnnxRuntimeBackend(bundle) as backend:
        _, values = run_batches(backend, stack, bundle.spec.occupancy, 24, StageTimes())
    return detector, export(float(values.mean()), float(max(values.std(), 1e-3)))


def _settle(network: FeatureNetwork, slices: Tensor) -> None:
    """Take the batch statistics of real slices: under random weights activations else grow beyond FP16."""
    import torch

    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over what it sees, and not a moving one
        norm.train()
    with torch.no_grad():
        network(slices)
    for norm in norms:
        norm.eval()
