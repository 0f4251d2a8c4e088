"""Both sides of a comparison in the same engine, with the same threads and precision."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from ssn.core.bundle import Bundle
from ssn.core.errors import BackendError, first_line
from ssn.runtime.backend import Backend, Batch, StageTimes
from ssn.runtime.machine import look

if TYPE_CHECKING:
    from torch import nn

    from ssn.train.checkpoint import Detector

Run3d = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Engine:
    """What computes.

    Attributes
    ----------
    provider : ONNX Runtime's
    channels_last, compiled : torch's
    """

    name: str
    kind: Literal["onnxruntime", "openvino", "torch"]
    precision: Precision = "fp32"
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    channels_last: bool = False
    compiled: bool = False


ENGINES: tuple[Engine, ...] = (
    Engine("onnxruntime", "onnxruntime"),
    Engine("openvino", "openvino"),
    Engine("openvino bf16", "openvino", "bf16"),
    Engine("onnxruntime cuda", "onnxruntime", provider="cuda"),
    Engine("onnxruntime tensorrt", "onnxruntime", provider="tensorrt"),
    Engine("torch", "torch"),
    Engine("torch channels-last", "torch", channels_last=True),
    Engine("torch channels-last bf16", "torch", "bf16", channels_last=True),
    Engine("torch compiled bf16", "torch", "bf16", channels_last=True, compiled=True),
)
DEFAULT_ENGINES = ("onnxruntime", "openvino", "torch channels-last bf16")


def has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16; without, it is emulated, which nobody would run."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags


def engine_problem(engine: Engine) -> str | None:
    """Why an engine cannot run here; None if it may."""
    if engine.kind == "onnxruntime":
        wanted = {"cpu": "CPU", "cuda": "CUDA", "tensorrt": "Tensorrt"}[engine.provider] + "ExecutionProvider"
        return None if wanted in look().providers else f"this onnxruntime has no {wanted}"
    if importlib.util.find_spec(engine.kind) is None:
        return f"{engine.kind} is not installed"
    return "this CPU has no bfloat16" if engine.precision == "bf16" and not has_bf16() else None


def choose_engines(names: Sequence[str]) -> list[Engine]:
    """Engines by name.

    Raises
    ------
    BackendError
        If a name is unknown.
    """
    by_name = {engine.name: engine for engine in ENGINES}
    for name in names:
        if name not in by_name:
            raise BackendError(f"{name}: no such engine; there are: {', '.join(by_name)}")
    return [by_name[name] for name in names]


def open_graph(engine: Engine, path: Path, threads: int) -> Run3d:
    """Open an ONNX network of one input and one output.

    Raises
    ------
    BackendError
        If the engine refuses it.
    """
    try:
        return _onnxruntime(engine, path, threads) if engine.kind == "onnxruntime" else _openvino(engine, path, threads)
    except RuntimeError as error:  # both packages' own errors are RuntimeErrors
        raise BackendError(f"{path.name}: {engine.name} refuses it ({first_line(error)[:200]})") from error


def _onnxruntime(engine: Engine, path: Path, threads: int) -> Run3d:
    import onnxruntime as ort

    from ssn.runtime.onnx_sessions import PROVIDERS

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=[PROVIDERS[engine.provider]])
    if session.get_providers()[0] != PROVIDERS[engine.provider]:
        raise BackendError(f"{engine.name}: does not start; a CUDA, cuDNN or TensorRT library is missing")
    (name,) = (given.name for given in session.get_inputs())
    return lambda volume: cast("NDArray[np.float32]", session.run(None, {name: volume})[0])


def _openvino(engine: Engine, path: Path, threads: int) -> Run3d:
    import openvino

    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if engine.precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
    return lambda volume: cast("NDArray[np.float32]", np.array(request.infer([volume])[0]))


def open_module(engine: Engine, module: nn.Module, threads: int) -> Run3d:
    """Open a torch network as published code runs it."""
    import torch

    torch.set_num_threads(threads)
    layout = torch.channels_last_3d if engine.channels_last else torch.contiguous_format
    module = module.to(memory_format=layout)  # type: ignore[call-overload]
    run = torch.compile(module, dynamic=False) if engine.compiled else module

    def infer(volume: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode(), _autocast(engine):
            result = run(torch.from_numpy(volume).to(memory_format=layout))
            return cast("NDArray[np.float32]", result.float().numpy())

    return infer


def _autocast(engine: Engine) -> AbstractContextManager[None]:
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=engine.precision == "bf16")


class TorchBackend:
    """The slice pipeline's two networks in torch, for comparison within torch. The product has no such backend."""

    name = "torch"
    max_slices: int | None = None
    at_once = 1

    def __init__(self, engine: Engine, detector: Detector, threads: int) -> None:
        import torch

        from ssn.benchmarks.gpu.detector import TorchDetector

        torch.set_num_threads(threads)
        self._engine, self._threads = engine, threads
        self._detector = TorchDetector(detector, torch.float32, compiled=engine.compiled, device="cpu")

    def describe(self) -> dict[str, Any]:
        """Say what runs, for the record."""
        return {"backend": self._engine.name, "threads": self._threads}

    def run(self, batches: Iterable[Batch], times: StageTimes) -> Generator[NDArray[np.float32], None, None]:
        """Log-likelihood per dimension (L,) of each batch's places, in order."""
        for batch in batches:
            start = time.perf_counter()
            with _autocast(self._engine):
                (values,) = self._detector.run([batch])
            times.add("network", time.perf_counter() - start)
            yield values

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        del self._detector


def open_slices(engine: Engine, bundle: Bundle, detector: Detector | None, threads: int) -> Backend:
    """Open the slice pipeline's backend; torch needs the detector that the bundle was made from.

    Raises
    ------
    BackendError
        If it doesn't start.
    """
    if engine.kind == "torch":
        if detector is None:
            raise BackendError(f"{bundle.spec.name}: a bundle has no torch networks, so {engine.name} cannot run it")
        return TorchBackend(engine, detector, threads)
    if engine.kind == "openvino":
        from ssn.runtime.openvino import OpenVinoBackend

        return OpenVinoBackend(bundle, threads, engine.precision)
    from ssn.runtime.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, threads, engine.provider)
