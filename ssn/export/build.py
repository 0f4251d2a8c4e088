"""Bundle to engines: convert the graphs, prove that the maps stay what they were, build, prove it again, write."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ssn import __version__
from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, Bundle
from ssn.core.engine_record import ENCODER_ENGINE, FLOW_ENGINE, TIMING_CACHE, Device, EngineKey, EngineRecord, Precision
from ssn.core.engines import find_engines, read_engine, refusal, refuse_existing_engines, write_engines
from ssn.core.errors import BundleError, ExportError
from ssn.core.hashed_files import file_entry
from ssn.export.engine import BuiltEngine, Target, build_engine, choose_target, inspect_engine, load_builder
from ssn.export.gpu_support import require_supported
from ssn.export.parity import (
    TOLERANCES,
    Answer,
    Drift,
    Sample,
    answers,
    answers_on_cpu,
    as_record,
    excesses,
    measure,
    method_of,
)
from ssn.export.variants import GRAPHS, Variant, make_variant
from ssn.runtime.machine import package_version

# Slices. A volume's some 150 slices with brain make four batches: enough for copies to overlap with computing.
DEFAULT_MAX_BATCH = 48
_TOOLS = ("onnx", "onnxruntime", "numpy")
Report = Callable[[str, int, int], None]  # what is being done, step, steps


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes
    ----------
    max_batch : most slices of a call
    target : "current", "any", "sm86"; None: what suits the TensorRT that is installed
    """

    precision: Precision = "fp16"
    max_batch: int = DEFAULT_MAX_BATCH
    workspace_mb: int | None = None
    target: str | None = None


def build_engines(
    bundle: Bundle,
    samples: Sequence[Sample],
    options: BuildOptions = BuildOptions(),
    *,
    healthy: Sequence[Sample] | None = None,
    device: Device | None,
    overwrite: bool = False,
    report: Report = lambda what, step, steps: None,
) -> tuple[Path, EngineRecord]:
    """Build a bundle's engines and write them; returns their folder and record.

    Parameters
    ----------
    samples : volumes that the drift is measured on
    healthy : those that INT8 takes its ranges from; `samples` if not given
    device : this machine's GPU, None if it has none
    report : called as the work goes on

    Raises
    ------
    BackendError
        If no TensorRT is installed that can build this here.
    ExportError
        If TensorRT refuses a graph, or the maps would drift beyond `TOLERANCES`; nothing is written.
    OutputError
        If such engines exist and are not to be overwritten, or can't be written.
    """
    module = load_builder(device)
    target = choose_target(module, options.target, device)
    windows = max(1, options.max_batch // bundle.spec.grid.window)
    key = EngineKey(
        module.__name__, module.__version__, target.gpu, target.compute_capability, options.precision, windows
    )
    refuse_existing_engines(bundle, key, overwrite=overwrite)
    if device is not None and target.name in (None, "CURRENT"):
        require_supported(module, device, target)

    report("reference", 0, 1)
    reference = answers_on_cpu(bundle, samples)
    variant = make_variant(
        bundle,
        options.precision,
        samples,
        reference,
        healthy=[sample.stack.slices for sample in (samples if healthy is None else healthy)],
        tried=lambda count: report("measuring the drift", count, count + 1),
    )
    built = _build_both(module, variant, bundle, windows, target, options, _old_cache(bundle, key), report)
    blobs = {name: engine.data for name, engine in built.items()}
    if cache := built[FLOW_ENGINE].timing_cache:
        blobs[TIMING_CACHE] = cache
    record = EngineRecord(
        key=key,
        onnx={name: bundle.manifest["files"][name]["sha256"] for name in (ENCODER_FILE, FLOW_FILE)},
        files={name: file_entry(data) for name, data in blobs.items()},
        inputs={name: engine.inputs for name, engine in built.items()},
        outputs={name: engine.outputs for name, engine in built.items()},
        build=_provenance(module, variant, samples, options, device, built),
    )
    if refusal(record, bundle, device, module.__name__, module.__version__) is None:
        report("checking the engines", 0, 1)
        drift = _drift_on_gpu(bundle, record, blobs, samples, reference)
        record = replace(record, build={**record.build, "drift_on_gpu": asdict(drift)})
    return write_engines(bundle, record, blobs, overwrite=overwrite), record


def _old_cache(bundle: Bundle, key: EngineKey) -> bytes:
    """Read the timing cache of engines of the same key that are about to be replaced."""
    for entry in find_engines(bundle):
        if entry.record is not None and entry.record.key.slug == key.slug and TIMING_CACHE in entry.record.files:
            try:
                return read_engine(entry, TIMING_CACHE)
            except BundleError:
                return b""
    return b""


def _build_both(
    module: Any,
    variant: Variant,
    bundle: Bundle,
    windows: int,
    target: Target,
    options: BuildOptions,
    cache: bytes,
    report: Report,
) -> dict[str, BuiltEngine]:
    """Build encoder and flow; the flow's build goes on with the encoder's timing cache."""
    spec = bundle.spec
    plane, cells = spec.grid.plane, spec.cells
    most = windows * cells**2
    slices = [(count * spec.slices_a_window, 1, plane, plane) for count in (1, windows, windows)]
    features = [(count, spec.features, cells, cells) for count in (1, windows, windows)]
    places = [(1,), (max(1, most // 2),), (most,)]  # about half of the cells are brain
    shapes: dict[str, Mapping[str, Sequence[tuple[int, ...]]]] = {
        ENCODER_FILE: {"slices": slices},
        FLOW_FILE: {"features": features, "places": places},
    }
    built: dict[str, BuiltEngine] = {}
    for engine, graph in ((ENCODER_ENGINE, ENCODER_FILE), (FLOW_ENGINE, FLOW_FILE)):
        built[engine] = build_engine(
            module,
            variant.graphs[graph],
            shapes[graph],
            target,
            name=graph,
            workspace_mb=options.workspace_mb,
            timing_cache=cache,
            progress=lambda phase, step, steps, graph=graph: report(f"{graph}: {phase}", step, steps),  # type: ignore[misc]
        )
        cache = built[engine].timing_cache
    return built


def _drift_on_gpu(
    bundle: Bundle,
    record: EngineRecord,
    blobs: dict[str, bytes],
    samples: Sequence[Sample],
    reference: Sequence[Answer],
) -> Drift:
    """Measure the engines themselves, from a scratch folder, before anything is written into the bundle."""
    from ssn.runtime.tensorrt import TensorRTBackend

    with tempfile.TemporaryDirectory() as scratch:
        trial = replace(bundle, folder=Path(scratch))
        write_engines(trial, record, blobs)
        (entry,) = find_engines(trial)
        with TensorRTBackend(trial, entry) as backend:
            drift = measure(bundle, samples, reference, answers(bundle, samples, method_of(bundle, backend)))
    if beyond := excesses(drift, TOLERANCES[record.key.precision]):
        raise ExportError(
            f"{bundle.folder}: the {record.key.precision} engine is not written, because on this GPU its maps drift "
            f"({'; '.join(beyond)}); build with --precision fp32"
        )
    return drift


def _provenance(
    module: Any,
    variant: Variant,
    samples: Sequence[Sample],
    options: BuildOptions,
    device: Device | None,
    built: dict[str, BuiltEngine],
) -> dict[str, Any]:
    about: dict[str, Any] = {name: dict(engine.about) for name, engine in built.items()}
    if device is not None:
        for name, engine in built.items():
            about[name]["fused_layers"] = inspect_engine(module, engine.data)
    return {
        "version": __version__,
        "tools": {tool: package_version(tool) or "not installed" for tool in _TOOLS},
        "device": None if device is None else asdict(device),
        "options": asdict(options),
        "kept_in_fp32": {graph: [node.name for node in variant.kept if node.graph == graph] for graph in GRAPHS},
        "drift": asdict(variant.drift),
        "tolerance": asdict(TOLERANCES[options.precision]),
        "measured_on": as_record(samples),
        "engines": about,
    }
