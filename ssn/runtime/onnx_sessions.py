"""How a bundle's graphs are opened in ONNX Runtime, with whatever computes them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Literal

import onnxruntime as ort

from ssn.core.bundle import Bundle
from ssn.core.errors import BackendError, BundleError, first_line

Provider = Literal["cpu", "cuda", "tensorrt"]
PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
Chain = list[tuple[str, dict[str, str]]]
_STATE = ort.capi.onnxruntime_pybind11_state
_RUN_ERRORS = (_STATE.RuntimeException, _STATE.Fail, _STATE.EPFail)  # memory that is short is one of these


def require_provider(provider: Provider) -> None:
    """Raise a BackendError if this build of ONNX Runtime lacks a provider."""
    if PROVIDERS[provider] not in ort.get_available_providers():
        raise BackendError(
            f"onnxruntime {ort.__version__} has no {PROVIDERS[provider]}; "
            "replace it with: pip uninstall onnxruntime && pip install onnxruntime-gpu"
        )


def session_options() -> ort.SessionOptions:
    """Options of every session."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # The two sessions take turns: a waiting pool that spins would take the other's cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def cuda_options(memory_limit: int | None = None) -> dict[str, str]:
    """Options of the CUDA provider.

    Parameters
    ----------
    memory_limit : bytes that the memory pools of two sessions may grow to
    """
    cuda = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}  # FP32 in the graph means FP32
    if memory_limit is not None:
        cuda["gpu_mem_limit"] = str(memory_limit // 2)
    return cuda


def provider_chain(provider: Provider, cuda: dict[str, str]) -> Chain:
    """List the provider and those that compute what it can't, with their options."""
    chain: Chain = [(PROVIDERS["cpu"], {})]
    if provider != "cpu":
        chain.insert(0, (PROVIDERS["cuda"], cuda))
    if provider == "tensorrt":
        chain.insert(0, (PROVIDERS["tensorrt"], {"trt_fp16_enable": "1"}))
    return chain


def open_session(
    bundle: Bundle, name: str, options: ort.SessionOptions, chain: Chain, provider: Provider
) -> ort.InferenceSession:
    """Open one of a bundle's graphs, from its verified bytes.

    Raises
    ------
    BackendError
        If the provider doesn't start with this graph.
    BundleError
        If ONNX Runtime refuses the graph.
    """
    data = bundle.read(name)
    if provider != "cpu":
        _preload()
    try:
        session = ort.InferenceSession(data, options, providers=chain)
    except Exception as error:  # its errors share no base class
        reason = first_line(error)
        if provider != "cpu":
            raise BackendError(f"onnxruntime: {PROVIDERS[provider]} does not start ({reason})") from error
        raise BundleError(f"{bundle.folder / name}: ONNX Runtime refuses it ({reason})") from error
    used = session.get_providers()[0]
    if used != PROVIDERS[provider]:  # it falls back on its own, with a warning that nobody reads
        raise BackendError(
            f"onnxruntime: {PROVIDERS[provider]} does not start, a CUDA, cuDNN or TensorRT library is "
            "missing or of another version; install them with: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    return session


@contextlib.contextmanager
def told_in_one_line() -> Iterator[None]:
    """Raise a BackendError of one line where a session fails to run; as a decorator, too."""
    try:
        yield
    except _RUN_ERRORS as error:
        reason = first_line(error)
        raise BackendError(f"onnxruntime: did not run ({reason}); a lower --batch takes less memory") from error


def _preload() -> None:
    """Load CUDA and cuDNN out of NVIDIA's wheels, where no loader looks; without them no session starts."""
    if hasattr(ort, "preload_dlls"):  # ONNX Runtime 1.21
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it lacks among our own output
            ort.preload_dlls()
