"""What is measured: slice pipelines and 3D networks, made once in a folder and found again there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from ssn.benchmarks.slice_models import ModelName, make_bundle, make_detector, model_config
from ssn.benchmarks.volumes import Shape
from ssn.core.atomic import atomic_path
from ssn.core.bundle import MANIFEST_FILE, Bundle, load_bundle
from ssn.core.volume import read_volume
from ssn.runtime.backend import DEFAULT_BATCH, Backend
from ssn.runtime.outputs import write_outputs
from ssn.runtime.packaged import DEFAULT_BUNDLE
from ssn.runtime.pipeline import infer_volume

if TYPE_CHECKING:
    from ssn.benchmarks.baselines import Baseline
    from ssn.benchmarks.costs import Costs
    from ssn.benchmarks.runners import Engine
    from ssn.train.checkpoint import Detector

NOT_NETWORK = ("read", "prepare", "map", "write", "picture")


@dataclass(frozen=True)
class SliceModel:
    """A slice pipeline: its bundle, and for torch the detector; their weights need not be the same."""

    name: ModelName
    bundle: Bundle
    detector: Detector | None


def slice_bundle(name: ModelName, folder: Path, scan: Path) -> Bundle:
    """Open the packaged bundle for the compact model; make one with random weights for the other, once."""
    if name == "compact":
        return load_bundle(DEFAULT_BUNDLE)
    if not (folder / name / MANIFEST_FILE).exists():
        # Made elsewhere: it is exported twice, and whoever is cut off between must not leave the first behind.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as scratch:
            make_bundle(name, Path(scratch) / name, scan)[1].folder.rename(folder / name)
    return load_bundle(folder / name)


def slice_models(names: Sequence[ModelName], folder: Path, scan: Path, *, torch: bool) -> list[SliceModel]:
    """Every slice pipeline asked for, with detectors if `torch`."""
    models = []
    for name in names:
        detector = make_detector(name, scan) if torch else None
        models.append(SliceModel(name, slice_bundle(name, folder, scan), detector))
    return models


def run_slices(scan: Path, bundle: Bundle, backend: Backend, folder: Path) -> dict[str, float]:
    """Take a volume from its file to its map and mask; returns seconds a stage, and of the networks as "net"."""
    result = infer_volume(scan, bundle, backend, batch=backend.max_slices or DEFAULT_BATCH)
    write_outputs(result, bundle, backend, folder, bundle.spec.name, picture=False, overwrite=True)
    stages = dict(result.times.seconds)
    return {**stages, "net": sum(seconds for stage, seconds in stages.items() if stage not in NOT_NETWORK)}


def slice_work(scan: Path, bundle: Bundle) -> dict[str, int]:
    """How many slices and map cells of a volume a slice pipeline computes."""
    spec = bundle.spec
    stack = spec.cut(read_volume(scan))
    return {"slices": len(stack.slices), "places": len(stack.occupied_places(spec.occupancy))}


def slice_costs(name: ModelName, work: dict[str, int]) -> Costs:
    """Count encoder and flow over `work`."""
    import torch

    from ssn.benchmarks.costs import Costs, count_costs
    from ssn.export.graphs import FlowGraph
    from ssn.train.checkpoint import build_detector
    from ssn.train.network import FeatureNetwork

    config = model_config(name)
    network = FeatureNetwork(config, weights="none").eval()
    flow = FlowGraph(build_detector(config, network, seed=0)).eval()
    features = torch.zeros(work["slices"] // config.slices_a_window, network.channels, network.cells, network.cells)
    places = torch.zeros(work["places"], dtype=torch.int64)
    slices = torch.zeros(work["slices"], 1, config.grid.plane, config.grid.plane)
    parts = (count_costs(network, slices), count_costs(flow, features, places, torch.zeros(1, dtype=torch.int64)))
    return Costs(
        sum(part.parameters for part in parts),
        sum(part.flops for part in parts),
        sum(part.bytes_moved for part in parts),
    )


def known_accuracy(engine: Engine, bundle: Bundle) -> Mapping[str, float] | None:
    """Give the accuracy on a bundle's record, where that is what runs.

    It was measured in FP32: bfloat16 gives other maps (`variants`), and in torch the weights are random.
    """
    if engine.kind == "torch" or engine.precision != "fp32":
        return None
    return cast("Mapping[str, float] | None", bundle.manifest.get("accuracy", {}).get("all"))


def export_baseline(baseline: Baseline, shape: Shape, folder: Path) -> Path:
    """Export a baseline to ONNX for one input shape, once."""
    import torch

    from ssn.benchmarks.baselines import build_baseline
    from ssn.export.onnx import to_onnx

    slug = "-".join(baseline.name.lower().split())
    path = folder / f"{slug}-{'x'.join(map(str, shape))}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        data = to_onnx(build_baseline(baseline, shape), (torch.zeros(1, 1, *shape),), ["volume"], "output", {})
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    return path


@cache
def baseline_costs(baseline: Baseline, volume: Shape) -> Costs:
    """Count a baseline on a whole volume, all its runs."""
    import torch

    from ssn.benchmarks.baselines import build_baseline
    from ssn.benchmarks.costs import count_costs

    shape = baseline.input_shape(volume)
    return count_costs(build_baseline(baseline, shape), torch.zeros(1, 1, *shape)).times(baseline.runs(volume))


def random_volume(shape: Shape) -> NDArray[np.float32]:
    """Input for a network whose time is all that counts, (1, 1, X, Y, Z) float32."""
    return np.random.default_rng(0).random((1, 1, *shape), np.float32)
