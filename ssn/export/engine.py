"""One graph to one TensorRT engine, with whichever TensorRT is installed.

`tensorrt` and `tensorrt_rtx` have the same builder: everything here takes the module as a value. Networks are strongly
typed: the precision is what the ONNX says, and newer versions know nothing else. Engines hold no host code (no
VERSION_COMPATIBLE, no plug-ins), and the runtime is never told to allow any.
"""

from __future__ import annotations

import importlib
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssn.core.engine_record import ANY_GPU, Device, TensorSpec
from ssn.core.errors import BackendError, ExportError, first_line
from ssn.runtime.machine import TENSORRT_MODULES

Progress = Callable[[str, int, int], None]  # phase, step, steps
_DTYPES = {"HALF": "float16", "FLOAT": "float32", "INT64": "int64"}
# What an engine runs on for which TensorRT-RTX was told no target: Ampere and later.
_ANY_CAPABILITY = "80+"


@dataclass(frozen=True)
class Target:
    """GPUs that an engine is built for: the record's `gpu` and `compute_capability`, and the builder's own name."""

    gpu: str
    compute_capability: str
    name: str | None


@dataclass(frozen=True)
class BuiltEngine:
    """An engine and what is on record about it."""

    data: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    timing_cache: bytes
    about: Mapping[str, Any]


def load_builder(device: Device | None) -> Any:
    """Import the TensorRT that can build here: the full one needs a GPU, TensorRT-RTX does not.

    Raises
    ------
    BackendError
        If there is none, with the commands that install one.
    """
    reasons = {}
    for name in TENSORRT_MODULES:  # in order of preference
        if name == "tensorrt" and device is None:
            reasons[name] = "needs an NVIDIA GPU to build"
            continue
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            reasons[name] = "not installed" if isinstance(error, ModuleNotFoundError) else first_line(error)
    raise BackendError(
        f"no TensorRT can build an engine here (tensorrt: {reasons['tensorrt']}; tensorrt_rtx: "
        f"{reasons['tensorrt_rtx']}). Install one with: pip install tensorrt-rtx   (builds without a GPU too), or on a "
        "GPU machine: pip install tensorrt"
    )


def choose_target(module: Any, wanted: str | None, device: Device | None) -> Target:
    """Choose what to build for: "current", "any" or "sm86" and its like.

    Parameters
    ----------
    wanted : None: this machine's GPU with the full TensorRT; any GPU with TensorRT-RTX, whose engines are finished on
        the GPU that they are loaded on, whatever they were built for

    Raises
    ------
    BackendError
        If this module cannot build for it.
    """
    ahead = module.__name__ == "tensorrt_rtx"
    wanted = wanted or ("any" if ahead else "current")
    if wanted == "current":
        if device is None:
            raise BackendError("--target current: there is no NVIDIA GPU here; build with --target any or sm86")
        return Target(device.name, device.compute_capability, "CURRENT" if ahead else None)
    if not ahead:
        raise BackendError(
            f"--target {wanted}: only TensorRT-RTX builds for another GPU than this; pip install tensorrt-rtx, "
            "or build with --target current"
        )
    if wanted == "any":
        return Target(ANY_GPU, _ANY_CAPABILITY, None)
    known = sorted(name.lower() for name in vars(module.ComputeCapability) if re.fullmatch(r"SM\d+", name))
    if wanted.lower() not in known:
        raise BackendError(f"--target {wanted}: is unknown; give current, any, {', '.join(known)}")
    return Target(ANY_GPU, wanted.lower().removeprefix("sm"), wanted.upper())


def _first_error_logger(module: Any) -> Any:
    """Make a logger that keeps the first error: the later ones follow from it."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.first = ""

        def log(self, severity: Any, message: str) -> None:
            worst = (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR)
            # Without a GPU it complains of the driver on any occasion; that is known, and never the cause.
            if severity in worst and "cudaError 35" not in message:
                self.first = self.first or " ".join(message.split())[:300]

    return Logger()


def _monitor(module: Any, progress: Progress) -> Any:
    """Make the builder's progress monitor; what `progress` raises ends the build and is kept."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.raised: BaseException | None = None

        def show(self, phase: str, step: int) -> bool:
            # An exception must not pass through the builder's own code.
            try:
                progress(phase, step, self.steps[phase])
            except BaseException as error:
                self.raised = self.raised or error
            return self.raised is None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            self.show(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            return self.show(phase, step + 1)

        def phase_finish(self, phase: str) -> None:
            self.show(phase, self.steps[phase])

    return Monitor()


def build_engine(
    module: Any,
    graph: bytes,
    shapes: Mapping[str, Sequence[tuple[int, ...]]],
    target: Target,
    *,
    name: str,
    workspace_mb: int | None = None,
    timing_cache: bytes = b"",
    progress: Progress = lambda phase, step, steps: None,
) -> BuiltEngine:
    """Build one engine.

    Parameters
    ----------
    shapes : least, usual and largest shape of each input whose shape varies; the engine is fastest at the usual one
    name : of the graph, for messages
    workspace_mb : most memory that the engine may use for scratch; TensorRT's own limit if not given
    timing_cache : of an earlier build; it saves measuring again

    Raises
    ------
    ExportError
        If TensorRT does not take the graph or cannot build it.
    """
    log = _first_error_logger(module)
    builder = module.Builder(log)
    # Gone from versions that know only strongly typed networks; where it is left it must be set.
    typed = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = module.OnnxParser(network, log)
    if not parser.parse(graph):
        reason = log.first or (parser.get_error(0).desc() if parser.num_errors else "it gives no reason")
        raise ExportError(f"{name}: {module.__name__} {module.__version__} does not take the graph ({reason})")
    config = builder.create_builder_config()
    config.clear_flag(module.BuilderFlag.TF32)  # FP32 in the graph means FP32
    if hasattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # TensorRT-RTX would take memory of its own at some shapes, and such an engine cannot be captured in a graph.
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if workspace_mb is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, workspace_mb * 2**20)
    if target.name is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(module.ComputeCapability, target.name), 0)
    profile = builder.create_optimization_profile()
    for tensor, range_ in shapes.items():
        profile.set_shape(tensor, *range_)
    config.add_optimization_profile(profile)
    keeps_cache = module.__name__ == "tensorrt"  # TensorRT-RTX has the calls, and they do nothing
    # One of a device with other properties is refused, and then none is set.
    if keeps_cache and not config.set_timing_cache(config.create_timing_cache(timing_cache), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    monitor = None
    if hasattr(module, "IProgressMonitor"):
        monitor = _monitor(module, progress)  # a name of its own: the config holds no reference
        config.progress_monitor = monitor
    start = time.perf_counter()
    data = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.raised is not None:
        raise monitor.raised
    if data is None:
        raise ExportError(
            f"{name}: {module.__name__} {module.__version__} cannot build it ({log.first or 'it gives no reason'})"
        )
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return BuiltEngine(
        data=bytes(data),
        inputs=tuple(_spec(network.get_input(index)) for index in range(network.num_inputs)),
        outputs=tuple(_spec(network.get_output(index)) for index in range(network.num_outputs)),
        timing_cache=bytes(config.get_timing_cache().serialize()) if keeps_cache else b"",
        about={
            "seconds": round(time.perf_counter() - start, 2),
            "layers": dict(Counter(layer.type.name for layer in layers).most_common()),
            "layer_types": dict(
                Counter(
                    layer.get_output_type(index).name for layer in layers for index in range(layer.num_outputs)
                ).most_common()
            ),
            "tactic_sources": _set_bits(module.TacticSource, config.get_tactic_sources()),
            "shapes": {tensor: [list(shape) for shape in range_] for tensor, range_ in shapes.items()},
        },
    )


def _spec(tensor: Any) -> TensorSpec:
    kind = tensor.dtype.name
    if kind not in _DTYPES:
        raise ExportError(f"{tensor.name}: has type {kind}, which no part of ssn feeds or reads")
    return TensorSpec(tensor.name, _DTYPES[kind], tuple(int(size) for size in tensor.shape))


def _set_bits(flags: Any, bits: int) -> list[str]:
    return sorted(name for name, flag in flags.__members__.items() if bits >> int(flag) & 1)


def inspect_engine(module: Any, data: bytes) -> list[str]:
    """Names of an engine's layers as TensorRT fused them, by its engine inspector; on a GPU only.

    The caller has just built `data` and has a device: without one, deserialising is not safe in every version.
    """
    logger = module.Logger(module.Logger.INTERNAL_ERROR)
    runtime = module.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None or not hasattr(engine, "create_engine_inspector"):
        return []
    inspector = engine.create_engine_inspector()
    line = module.LayerInformationFormat.ONELINE
    return [(inspector.get_layer_information(index, line) or "").strip() for index in range(engine.num_layers)]
