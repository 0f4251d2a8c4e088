"""Everything that is measured on a GPU, in one run: engines, streams, graphs, memory, and other ways to compute.

Whatever fails is recorded with its reason and the rest goes on; the JSON is written anew after each part.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from ssn.benchmarks.gpu.timing import Report, attempt, consume, end_to_end, peak_memory, time_variants
from ssn.benchmarks.measure import Tell, environment
from ssn.benchmarks.slice_models import MODELS, ModelName, make_bundle
from ssn.benchmarks.volumes import STANDARD, make_scan
from ssn.core.atomic import write_json_atomic
from ssn.core.bundle import Bundle
from ssn.core.engine_record import Device
from ssn.core.engines import find_engines
from ssn.core.errors import BackendError, SsnError, installing
from ssn.core.slices import SliceStack
from ssn.core.volume import read_volume
from ssn.runtime.backend import DEFAULT_BATCH, Batch, StageTimes, plan_batches, run_batches
from ssn.runtime.cuda import find_device
from ssn.runtime.device_pipeline import DevicePipeline
from ssn.runtime.memory import MEGABYTE
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.tensorrt import TensorRTBackend

if TYPE_CHECKING:
    from ssn.train.checkpoint import Detector

Part = Literal["torch", "onnxruntime", "tensorrt"]
PARTS: tuple[Part, ...] = get_args(Part)
BATCHES = (24, 48, 96)  # slices a batch: a volume in four, two and one
_NEEDED = {"torch": "torch", "timm": "timm", "FrEIA": "FrEIA", "onnx": "onnx", "onnxscript": "onnxscript"}


def require_gpu() -> Device:
    """Return the device, when everything else that the suite needs is here as well.

    Raises
    ------
    BackendError
        Naming all that is missing.
    """
    device, reason = find_device()
    if device is None:
        raise BackendError(f"the GPU suite needs an NVIDIA GPU, and there is none to use: {reason}")
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise BackendError(f"the GPU suite needs {', '.join(missing)} as well: {installing('train,gpu')}")
    return device


def run_gpu_suite(
    output: Path,
    *,
    models: Sequence[ModelName] = MODELS,
    parts: Sequence[Part] = PARTS,
    rounds: int = 20,
    max_batch: int = 48,
    tell: Tell = lambda what, step, steps: None,
) -> Report:
    """Run the suite and write its JSON to `output`.

    Parameters
    ----------
    parts : what computes
    rounds : timed runs of a volume, of each way to compute
    max_batch : slices a batch, the same for all ways

    Raises
    ------
    BackendError
        If there is no GPU, or a package is missing.
    OutputError
        If the JSON can't be written.
    """
    device = require_gpu()
    from ssn.benchmarks.gpu.detector import matmul_rate

    report: Report = {"environment": environment(), "rounds": rounds, "slices_a_batch": max_batch, "models": {}}

    def save() -> None:
        write_json_atomic(output, report, overwrite=True)

    save()
    tell(f"{device.name}: one matrix product in FP16", 0, 1)
    report["fp16_matmul_tflops"] = attempt(lambda: round(matmul_rate() / 1e12, 1))
    with tempfile.TemporaryDirectory() as scratch:
        for index, model in enumerate(models):
            part: Report = {}
            report["models"][model] = part
            for name in _measure_model(part, model, Path(scratch), device, rounds, max_batch, parts):
                tell(f"{model}: {name}", index, len(models))
                save()
    return report


def run_gpu_networks(
    output: Path,
    *,
    against: Sequence[str] = (),
    rounds: int = 20,
    tell: Tell = lambda what, step, steps: None,
) -> Report:
    """Measure the 3D networks that slice pipelines are compared with, and write their JSON to `output`.

    Parameters
    ----------
    against : names of 3D networks; all if empty

    Raises
    ------
    BackendError, OutputError
        As `run_gpu_suite`.
    """
    require_gpu()
    from ssn.benchmarks.baselines import choose_baselines
    from ssn.benchmarks.gpu.networks_3d import measure_networks

    baselines = choose_baselines(against)
    report: Report = {"environment": environment(), "rounds": rounds, "volume": list(STANDARD), "networks": {}}
    write_json_atomic(output, report, overwrite=True)
    for index, (name, found) in enumerate(measure_networks(baselines, rounds)):
        tell(name, index + 1, len(baselines))
        report["networks"][name] = found
        write_json_atomic(output, report, overwrite=True)
    return report


def _measure_model(
    part: Report, model: ModelName, scratch: Path, device: Device, rounds: int, max_batch: int, parts: Sequence[Part]
) -> Iterator[str]:
    """Measure one model, part by part; yields what comes next."""
    from ssn.benchmarks.gpu.onnx_times import OnnxPipelines, time_onnxruntime
    from ssn.benchmarks.gpu.torch_times import TorchPipelines, time_torch

    yield "making the bundle"
    scan = make_scan(scratch).path
    detector, bundle = make_bundle(model, scratch / model, scan)
    stack = bundle.spec.cut(read_volume(scan))
    batches = list(plan_batches(stack, bundle.spec.occupancy, max_batch))
    part["weights"] = "random: speed does not depend on them, accuracy does, so none is reported"
    part["volume"] = {
        "slices": len(stack.slices),
        "places": sum(len(batch.places) for batch in batches),
        "batches": len(batches),
    }
    part["flops"] = attempt(lambda: _flops(detector, batches, bundle.spec.slices_a_window))
    # What needs no TensorRT comes first: a crash in native code would take the rest with it.
    if "torch" in parts:
        yield "torch"
        part["torch"] = attempt(lambda: time_torch(detector, batches, rounds))
        yield "the CUDA pipeline over torch"
        pipelines = TorchPipelines(detector, bundle, stack, max_batch)
        part["pipeline_over_torch"] = attempt(lambda: pipelines.time(scan, rounds))
        part["pipeline_by_batch"] = attempt(lambda: pipelines.time_batches(BATCHES, rounds))
    if "onnxruntime" in parts:
        yield "ONNX Runtime with CUDA"
        for name, found in time_onnxruntime(bundle, batches, scan, max_batch, rounds):
            part[name] = found
            yield name
        over: Report = part.setdefault("pipeline_over_onnxruntime", {})
        for name, found in OnnxPipelines(bundle, stack, max_batch).time(scan, rounds):
            over[name] = found
            yield f"the CUDA pipeline over ONNX Runtime, {name}"
    if "tensorrt" in parts:
        yield "building engines"
        part["engines"] = attempt(lambda: _build(bundle, scan, device, max_batch))
        yield "comparing every backend"
        part["check"] = attempt(lambda: _check(bundle, scan))
        yield "TensorRT"
        part["tensorrt"] = attempt(lambda: _tensorrt(bundle, stack, batches, scan, rounds))


def _flops(detector: Detector, batches: Sequence[Batch], slices_a_window: int) -> Report:
    from ssn.benchmarks.gpu.detector import count_flops

    encoder, flow = count_flops(detector)
    windows = sum(len(batch.slices) // slices_a_window for batch in batches)
    places = sum(len(batch.places) for batch in batches)
    return {
        "encoder_a_slice": encoder / slices_a_window,
        "flow_a_place": flow,
        "volume": encoder * windows + flow * places,
    }


def _build(bundle: Bundle, scan: Path, device: Device, max_batch: int) -> Report:
    """Build FP16 engines, gate included; for this very GPU where it refuses what was built for any."""
    try:
        return _build_for(None, bundle, scan, device, max_batch)
    except BackendError as refused:  # what the gate refuses is an ExportError, and the same for every target
        try:
            result = _build_for("current", bundle, scan, device, max_batch)
        except SsnError as again:
            raise BackendError(f"{refused}; and built for this GPU: {again}") from again
        return {**result, "without a target": str(refused)}


def _build_for(target: str | None, bundle: Bundle, scan: Path, device: Device, max_batch: int) -> Report:
    from ssn.export.build import BuildOptions, build_engines
    from ssn.export.parity import prepare

    start = time.perf_counter()
    options = BuildOptions(precision="fp16", max_batch=max_batch, target=target)
    folder, record = build_engines(bundle, [prepare(bundle, scan)], options, device=device)
    return {
        "engine": folder.name,
        "seconds": round(time.perf_counter() - start, 1),
        "bytes": {name: entry["bytes"] for name, entry in record.files.items()},
        "build": json.loads(json.dumps(asdict(record)["build"], default=str)),
    }


def _check(bundle: Bundle, scan: Path) -> list[Report]:
    """Do what `ssn-export check` does."""
    from ssn.export.check import check_bundle
    from ssn.export.parity import prepare

    return [asdict(row) for row in check_bundle(bundle, [prepare(bundle, scan)])]


def _tensorrt(bundle: Bundle, stack: SliceStack, batches: Sequence[Batch], scan: Path, rounds: int) -> Report:
    entries = [entry for entry in find_engines(bundle) if entry.record is not None]
    if not entries:
        raise BackendError("no engine was built")
    entry = entries[0]

    def once() -> Report:
        with TensorRTBackend(bundle, entry) as backend:
            consume(backend, batches, StageTimes())
            return {"described": backend.describe(), "allocated_mb": round(backend.peak_bytes / MEGABYTE, 1)}

    result, peak = peak_memory(once)
    result["peak_memory_mb"] = peak

    @contextmanager
    def opened(overlap: bool, graphs: bool) -> Iterator[DevicePipeline]:
        with TensorRTBackend(bundle, entry, overlap=overlap, graphs=graphs) as backend:
            yield backend.pipeline

    result |= time_variants(opened, batches, rounds)
    with TensorRTBackend(bundle, entry) as backend, OnnxRuntimeBackend(bundle) as reference:
        size = backend.max_slices or DEFAULT_BATCH
        _, given = run_batches(backend, stack, bundle.spec.occupancy, size, StageTimes())
        _, wanted = run_batches(reference, stack, bundle.spec.occupancy, size, StageTimes())
        result["largest_difference"] = float(np.abs(given - wanted).max())
        result["end_to_end"] = end_to_end(backend, bundle, scan, size, rounds)
    return result
