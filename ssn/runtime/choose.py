"""Which backend runs: what was asked for, or the best of what is here, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ssn.core.bundle import Bundle
from ssn.core.engine_record import EngineEntry
from ssn.core.engines import find_engines, rebuild_command, refusal, verify_engine
from ssn.core.errors import BackendError, BundleError, MemoryLimitError, SsnError
from ssn.runtime.backend import Backend, FeatureBackend
from ssn.runtime.cpu_choice import Comparison, compare_on_cpu
from ssn.runtime.machine import Machine, look

BackendName = Literal["auto", "tensorrt", "onnxruntime", "openvino"]
DeviceName = Literal["auto", "cpu", "cuda"]
AUTO_ORDER: tuple[tuple[BackendName, DeviceName], ...] = (
    ("tensorrt", "cuda"),
    ("onnxruntime", "cuda"),
    ("openvino", "cpu"),
    ("onnxruntime", "cpu"),
)
_PRECISION_ORDER = ("fp16", "fp32", "int8")  # of several engines that may run; INT8 is for those who have no other


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes
    ----------
    threads : of CPU backends; None: all cores
    batch : slices at once; None: the backend's own
    at_once : volumes that a CPU computes at the same time
    memory_limit : bytes on the GPU
    align : each volume's features by their own (`ssn.runtime.self_aligned`); None: as the bundle's threshold is for
    """

    backend: BackendName = "auto"
    device: DeviceName = "auto"
    threads: int | None = None
    batch: int | None = None
    memory_limit: int | None = None
    at_once: int = 1
    align: bool | None = None


@dataclass(frozen=True)
class Option:
    """One way to run, best first in a list of them.

    Attributes
    ----------
    problem : why it can't run here and what mends it; None if nothing speaks against it
    entry : the engine that would run
    """

    backend: BackendName
    device: DeviceName
    problem: str | None = None
    entry: EngineEntry | None = None

    @property
    def label(self) -> str:
        """Name for people."""
        engine = f", engine {self.entry.folder.name}" if self.entry else ""
        return f"{self.backend} on {self.device}{engine}"


@dataclass
class Choice:
    """What runs.

    Attributes
    ----------
    passed_over : a line for each better way, saying why it doesn't run
    warnings : those worth saying unasked: engines that were built and are of no use here
    measured : what was found of the ways to compute on this CPU; None if there was no choice to make
    """

    backend: Backend
    label: str
    passed_over: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    measured: str | None = None


def engine_problem(entry: EngineEntry, bundle: Bundle, machine: Machine, *, verify: bool = False) -> str | None:
    """Why an engine may not run here; None if it may. `verify` reads it and compares its hashes as well."""
    if entry.record is None:
        return entry.problem
    builder = entry.record.key.builder
    installed = machine.modules.get(builder)
    if machine.device is not None and installed is None:
        package = builder.replace("_", "-")
        return f"{entry.folder}: needs {builder} {entry.record.key.builder_version}: pip install {package}"
    problem = refusal(entry.record, bundle, machine.device, builder, installed or "none")
    return verify_engine(entry) if problem is None and verify else problem


def options(bundle: Bundle, machine: Machine, *, verify: bool = False) -> Iterator[Option]:
    """Every way to run a bundle, in the order of `AUTO_ORDER`, with what speaks against it."""
    for backend, device in AUTO_ORDER:
        if device == "cuda" and machine.device is None:
            yield Option(backend, device, f"no GPU: {machine.no_device}")
        elif backend == "tensorrt":
            yield from _tensorrt_options(bundle, machine, verify=verify)
        elif backend == "openvino":
            missing = machine.modules["openvino"] is None
            yield Option(backend, device, "not installed: pip install openvino" if missing else None)
        elif machine.onnxruntime is None:
            yield Option(backend, device, "not installed, or broken: pip install --force-reinstall onnxruntime")
        elif device == "cuda" and "CUDAExecutionProvider" not in machine.providers:
            problem = "this onnxruntime is the CPU build: pip uninstall onnxruntime && pip install onnxruntime-gpu"
            yield Option(backend, device, problem)
        else:
            yield Option(backend, device)


def _tensorrt_options(bundle: Bundle, machine: Machine, *, verify: bool) -> Iterator[Option]:
    entries = find_engines(bundle)
    if not entries:
        yield Option("tensorrt", "cuda", f"the bundle has no engine; build one: {rebuild_command(bundle.folder)}")

    def rank(entry: EngineEntry) -> int:
        return _PRECISION_ORDER.index(entry.record.key.precision) if entry.record else len(_PRECISION_ORDER)

    for entry in sorted(entries, key=rank):
        yield Option("tensorrt", "cuda", engine_problem(entry, bundle, machine, verify=verify), entry)


def in_order(found: Sequence[Option], compare: Callable[[], Comparison | None]) -> Iterator[Option]:
    """Yield ways best first: as they are listed, but on a CPU that can run two the one that is faster there.

    Parameters
    ----------
    compare : measures that; called only when no way before was taken
    """
    on_cpu = [option for option in found if option.device == "cpu"]
    yield from (option for option in found if option.device != "cpu")
    if sum(option.problem is None for option in on_cpu) > 1:
        comparison = compare()
        chosen = comparison.chosen if comparison else "onnxruntime"
        on_cpu.sort(key=lambda option: option.backend != chosen)
    yield from on_cpu


def open_backend(bundle: Bundle, request: Request, machine: Machine | None = None) -> Choice:
    """Open the first way that fits the request and runs.

    Raises
    ------
    BackendError
        If none does; it says what is missing and how to mend it.
    BundleError
        If a graph of the bundle was modified; if it is to align, and does not whiten its features.
    """
    machine = machine or look()
    aligning = _aligning(bundle, request)
    fitting = [
        option
        for option in options(bundle, machine)
        if request.backend in ("auto", option.backend) and request.device in ("auto", option.device)
    ]
    if not fitting:
        raise BackendError(f"{request.backend} does not compute on {request.device}; leave out --device")
    if request.memory_limit is not None:
        fitting = [option for option in fitting if option.device == "cuda"]
    passed_over: list[str] = []
    warnings: list[str] = []
    measured = None

    def compare() -> Comparison | None:
        nonlocal measured
        comparison = compare_on_cpu(bundle, machine, request.threads)
        measured = comparison.line() if comparison else "openvino: cannot be measured here"
        return comparison

    for option in in_order(fitting, compare):
        problem = option.problem
        if problem is None:
            try:
                backend = aligning(open_option(bundle, option, request))
                return Choice(backend, option.label, passed_over, warnings, measured)
            except SsnError as error:
                # The bundle's own graphs, or the user's limit: no other backend would be better off.
                if isinstance(error, MemoryLimitError) or (isinstance(error, BundleError) and option.entry is None):
                    raise
                problem = str(error)
        passed_over.append(f"{option.label}: {problem}")
        if option.entry is not None:
            warnings.append(problem)
    if request.backend == "tensorrt" and machine.device is not None and not find_engines(bundle):
        provider = "TensorrtExecutionProvider"
        if provider in machine.providers:
            from ssn.runtime.onnxruntime import OnnxRuntimeBackend

            opened = OnnxRuntimeBackend(bundle, request.threads, "tensorrt", request.memory_limit)
            return Choice(aligning(opened), f"onnxruntime with {provider}", passed_over, warnings)
    if request.memory_limit is not None:
        why = "; ".join(passed_over) or "--device cpu"
        raise BackendError(f"--memory-limit bounds memory on a GPU, and none computes ({why}); on a CPU, lower --batch")
    remedy = "" if machine.device else ". On the CPU: leave out --backend and --device"
    raise BackendError("nothing can run as asked: " + "; ".join(passed_over) + remedy)


def _aligning(bundle: Bundle, request: Request) -> Callable[[FeatureBackend], Backend]:
    """Return what makes a backend align each volume, if that is asked for; refused before anything is opened."""
    if not (bundle.calibration.aligned_to_itself if request.align is None else request.align):
        return lambda backend: backend
    from ssn.runtime.self_aligned import SelfAlignedBackend, whitening_of

    whitening = whitening_of(bundle)
    return lambda backend: SelfAlignedBackend(bundle, whitening, backend)


def open_option(bundle: Bundle, option: Option, request: Request) -> FeatureBackend:
    """Open one of `options`, of which nothing speaks against; it aligns nothing."""
    if option.entry is not None:
        from ssn.runtime.tensorrt import TensorRTBackend

        return TensorRTBackend(bundle, option.entry, batch=request.batch, memory_limit=request.memory_limit)
    if option.backend == "openvino":
        from ssn.runtime.openvino import OpenVinoBackend

        return OpenVinoBackend(bundle, request.threads, at_once=request.at_once)
    from ssn.runtime.onnxruntime import OnnxRuntimeBackend

    provider: Literal["cpu", "cuda"] = "cuda" if option.device == "cuda" else "cpu"
    return OnnxRuntimeBackend(bundle, request.threads, provider, request.memory_limit, request.at_once)
