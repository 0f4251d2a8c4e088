"""Checkpoint to bundle: export both graphs, prove that they say what torch says, then write."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ssn import __version__
from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, Bundle, ModelSpec, write_bundle
from ssn.core.errors import ExportError
from ssn.core.scoring import Calibration
from ssn.export.graphs import FlowGraph
from ssn.export.torch_reference import torch_log_likelihood
from ssn.runtime.backend import Batch
from ssn.runtime.machine import package_version
from ssn.train.checkpoint import Detector

OPSET = 18  # ONNX Runtime and TensorRT 10 and later take it
TOLERANCE = 1e-3  # largest difference of log-likelihood per dimension between torch and ONNX Runtime
_TOOLS = ("torch", "timm", "FrEIA", "onnx", "onnxruntime", "numpy")


def to_onnx(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: Sequence[str],
    output: str,
    dynamic: Mapping[str, Mapping[int, Any]],
) -> bytes:
    """Export a module with one output to ONNX, weights inside, without any trace of this machine.

    Parameters
    ----------
    names : of the inputs
    dynamic : per input, its axes of any length and their names
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(names),
            output_names=[output],
            dynamic_shapes={name: dict(dynamic.get(name, {})) for name in names},
            verbose=False,
        )
    assert program is not None  # it is None only without dynamo
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _strip(model: onnx.ModelProto) -> None:
    """Remove stack traces and other notes of the exporter: they hold source paths."""
    noted: list[Any] = [model]
    graphs = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        noted += [graph, *graph.node, *graph.value_info]
        if isinstance(graph, onnx.GraphProto):  # a function's inputs and outputs are names
            noted += [*graph.initializer, *graph.input, *graph.output]
        graphs.extend(attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g"))
    for part in noted:
        part.doc_string = ""
        del part.metadata_props[:]


def export_graphs(detector: Detector) -> dict[str, bytes]:
    """Export encoder and flow of a detector."""
    plane, cells, each = detector.config.grid.plane, detector.network.cells, detector.config.slices_a_window
    windows = 4
    slices = torch.zeros(windows * each, 1, plane, plane)
    features = torch.zeros(windows, detector.network.channels, cells, cells)
    places = torch.arange(7)
    count, places_count, window_count = (torch.export.Dim(name) for name in ("windows", "L", "W"))
    return {
        ENCODER_FILE: to_onnx(detector.network, (slices,), ["slices"], "features", {"slices": {0: each * count}}),
        FLOW_FILE: to_onnx(
            FlowGraph(detector),
            (features, places, torch.zeros(1, dtype=torch.int64)),
            ["features", "places", "first"],
            "log_likelihood",
            {"features": {0: window_count}, "places": {0: places_count}},
        ),
    }


def measure_parity(
    detector: Detector, graphs: Mapping[str, bytes], batches: Sequence[Batch], *, far: bool = False
) -> float:
    """Largest difference of log-likelihood per dimension between torch and ONNX Runtime; 0 for no batches.

    Parameters
    ----------
    batches : what is computed, at the places where it is: the flow means nothing elsewhere
    far : the batches are like no brain. A trained flow puts noise at hundreds of nats a dimension, where two orders
        of an FP32 sum differ by more than the tolerance: beyond 1 nat the difference is taken relative to its size.
    """
    import onnxruntime as ort

    encoder, flow = (
        ort.InferenceSession(graphs[name], providers=["CPUExecutionProvider"]) for name in (ENCODER_FILE, FLOW_FILE)
    )
    differences = []
    for batch in batches:
        expected = torch_log_likelihood(detector, batch)
        (features,) = encoder.run(None, {"slices": batch.slices})
        first = np.array([batch.first], np.int64)
        (given,) = flow.run(None, {"features": features, "places": batch.places, "first": first})
        size = np.maximum(np.abs(expected), 1) if far else 1
        differences.append((np.abs(expected - given) / size).max())
    return float(np.max(differences, initial=0.0))  # not Python's max, which may pass over NaN


def random_batches(detector: Detector) -> list[Batch]:
    """Noise in slices of some windows, and every third of their cells."""
    grid, cells, each = detector.config.grid, detector.network.cells, detector.config.slices_a_window
    rng = np.random.default_rng(0)
    batches = []
    for first, windows in ((0, 1), (min(5, grid.windows - 3), 3)):
        slices = rng.random((each * windows, 1, grid.plane, grid.plane), np.float32)
        batches.append(Batch(slices, first * cells**2 + np.arange(0, windows * cells**2, 3), first))
    return batches


def spec_of(detector: Detector, name: str, modality: str) -> ModelSpec:
    """Say what a runtime must know to run a detector."""
    config, network = detector.config, detector.network
    return ModelSpec(
        name=name,
        modality=modality,
        grid=config.grid,
        normalisation=config.normalisation,
        cells=network.cells,
        features=network.channels,
        occupancy=config.occupancy,
        thick=config.thick,
    )


def export_bundle(
    detector: Detector,
    calibration: Calibration,
    folder: Path,
    *,
    name: str,
    modality: str,
    real: Sequence[Batch] = (),
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Export a calibrated detector to a bundle.

    Parameters
    ----------
    real : batches of volumes to compare on, besides random ones
    about : further entries of the manifest

    Raises
    ------
    ExportError
        If ONNX Runtime differs from torch by more than `TOLERANCE`; nothing is written.
    OutputError
        If the folder can't be written.
    """
    config = detector.config
    graphs = export_graphs(detector)
    random = measure_parity(detector, graphs, random_batches(detector), far=True)
    parity = float(np.max([random, measure_parity(detector, graphs, real)]))
    if not parity <= TOLERANCE:  # so that NaN is beyond it
        raise ExportError(
            f"{folder}: not written, because ONNX Runtime differs from torch by {parity:.1e} in log-likelihood "
            f"per dimension; at most {TOLERANCE:.0e} is allowed"
        )
    spec = spec_of(detector, name, modality)
    record = {
        "version": __version__,
        "tools": {tool: package_version(tool) or "not installed" for tool in _TOOLS},
        "architecture": {**config.to_dict(), "clamp_form": "clamp * tanh(a)"},
        "training": detector.record,
        "parity": {"log_likelihood_per_dimension": parity, "tolerance": TOLERANCE},
        **(about or {}),
    }
    return write_bundle(folder, spec, graphs, calibration, record, overwrite=overwrite)
