"""ONNX Runtime: on the CPU, with CUDA, and with its TensorRT provider."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Generator, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, Bundle
from ssn.core.errors import BackendError, BundleError
from ssn.runtime.backend import Batch, StageTimes, check_features, check_slices
from ssn.runtime.machine import cores
from ssn.runtime.side_by_side import halves, parts_at_once, run_side_by_side

Provider = Literal["cpu", "cuda", "tensorrt"]
PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_GPU_BATCH = 48  # slices: fewer leave a GPU idle
_STATE = ort.capi.onnxruntime_pybind11_state
_RUN_ERRORS = (_STATE.RuntimeException, _STATE.Fail, _STATE.EPFail)  # memory that is short is one of these


class OnnxRuntimeBackend:
    """Two sessions made from the bundle's verified bytes; features stay where they were computed.

    Parameters
    ----------
    bundle : Bundle
    threads : int or None
        Threads in all, on a CPU; all cores if not given. An even number computes two parts of a batch side by side.
    provider : what computes. What a GPU provider lacks is computed by the next: TensorRT, CUDA, CPU.
    at_once : volumes that are computed at the same time on a CPU, by threads that share the sessions
    memory_limit : bytes that CUDA's memory pools may grow to, half of it for each session

    Raises
    ------
    BackendError
        If the provider isn't there or doesn't start with these graphs.
    BundleError
        If ONNX Runtime refuses a graph.
    """

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        provider: Provider = "cpu",
        memory_limit: int | None = None,
        at_once: int = 1,
    ) -> None:
        if threads is not None and threads < 1:
            raise BackendError(f"onnxruntime: {threads} threads are not possible; give 1 or more")
        if PROVIDERS[provider] not in ort.get_available_providers():
            raise BackendError(
                f"onnxruntime {ort.__version__} has no {PROVIDERS[provider]}; "
                "replace it with: pip uninstall onnxruntime && pip install onnxruntime-gpu"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.at_once = at_once if provider == "cpu" else 1
        share = (threads or cores()) // self.at_once
        self._parts = parts_at_once(share) if provider == "cpu" and self.at_once == 1 else 1
        if provider == "cpu":
            options.intra_op_num_threads = max(1, share // self._parts)
        elif threads is not None:
            options.intra_op_num_threads = threads
        if provider == "cpu":
            # Its arena keeps the most that each shape ever took, which malloc gives to the next: as fast, less memory.
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        # The two sessions take turns: a waiting pool that spins would take the other's cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._bundle, self._threads, self._provider = bundle, threads, provider
        self.max_slices: int | None = None if provider == "cpu" else _GPU_BATCH
        self._device = "cpu" if provider == "cpu" else "cuda"
        chain = _chain(provider, memory_limit)
        if provider != "cpu":
            _preload()
        self._encoder = self._session(bundle, ENCODER_FILE, options, chain)
        self._flow = self._session(bundle, FLOW_FILE, options, chain)
        self._takes = self._encoder.get_inputs()[0].shape[2:]

    def _session(
        self, bundle: Bundle, name: str, options: ort.SessionOptions, chain: list[tuple[str, dict[str, str]]]
    ) -> ort.InferenceSession:
        data = bundle.read(name)
        try:
            session = ort.InferenceSession(data, options, providers=chain)
        except Exception as error:  # its errors share no base class
            reason = str(error).splitlines()[0]
            if self._provider != "cpu":
                raise BackendError(f"onnxruntime: {PROVIDERS[self._provider]} does not start ({reason})") from error
            raise BundleError(f"{bundle.folder / name}: ONNX Runtime refuses it ({reason})") from error
        used = session.get_providers()[0]
        if used != PROVIDERS[self._provider]:  # it falls back on its own, with a warning that nobody reads
            raise BackendError(
                f"onnxruntime: {PROVIDERS[self._provider]} does not start, a CUDA, cuDNN or TensorRT library is "
                "missing or of another version; install them with: pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        return session

    def describe(self) -> dict[str, Any]:
        """Say what runs, for the record."""
        return {
            "backend": self.name,
            "version": ort.__version__,
            "provider": self._encoder.get_providers()[0],
            "threads": self._threads or "all cores",
            "volumes_at_once": self.at_once,
            "parts_of_a_batch_at_once": self._parts,
        }

    def run(self, batches: Iterable[Batch], times: StageTimes) -> Generator[NDArray[np.float32], None, None]:
        """Log-likelihood per dimension (L,) of each batch's places, in order."""
        if self._parts == 1:
            for batch in batches:
                yield self._compute(batch, times)
            return
        spec = self._bundle.spec
        split = partial(halves, each=spec.slices_a_window, cells=spec.cells**2)
        yield from run_side_by_side(self._compute, batches, split, times)

    def _compute(self, batch: Batch, times: StageTimes) -> NDArray[np.float32]:
        try:
            return self._log_likelihood(batch, times)
        except _RUN_ERRORS as error:
            reason = str(error).splitlines()[0]
            raise BackendError(f"onnxruntime: did not run ({reason}); a lower --batch takes less memory") from error

    def _log_likelihood(self, batch: Batch, times: StageTimes) -> NDArray[np.float32]:
        start = time.perf_counter()
        check_slices(self._takes, batch, self._bundle)
        encoder = self._encoder.io_binding()
        encoder.bind_cpu_input("slices", np.ascontiguousarray(batch.slices))
        encoder.bind_output("features", self._device)
        self._encoder.run_with_iobinding(encoder)
        (features,) = encoder.get_outputs()
        check_features(features.shape(), batch, self._bundle)
        encoded = time.perf_counter()
        flow = self._flow.io_binding()
        flow.bind_ortvalue_input("features", features)
        flow.bind_cpu_input("places", batch.places)
        flow.bind_cpu_input("first", np.array([batch.first], np.int64))
        flow.bind_output("log_likelihood", "cpu")
        self._flow.run_with_iobinding(flow)
        (values,) = flow.copy_outputs_to_cpu()
        times.add("encoder", encoded - start)
        times.add("flow", time.perf_counter() - encoded)
        return np.asarray(values, np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._encoder, self._flow


def _preload() -> None:
    """Load CUDA and cuDNN out of NVIDIA's wheels, where no loader looks; without them no session starts."""
    if hasattr(ort, "preload_dlls"):  # ONNX Runtime 1.21
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it lacks among our own output
            ort.preload_dlls()


def _chain(provider: Provider, memory_limit: int | None) -> list[tuple[str, dict[str, str]]]:
    """List the provider and those that compute what it can't, with their options."""
    cuda = {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}  # FP32 in the graph means FP32
    if memory_limit is not None:
        cuda["gpu_mem_limit"] = str(memory_limit // 2)
    chain: list[tuple[str, dict[str, str]]] = [(PROVIDERS["cpu"], {})]
    if provider != "cpu":
        chain.insert(0, (PROVIDERS["cuda"], cuda))
    if provider == "tensorrt":
        chain.insert(0, (PROVIDERS["tensorrt"], {"trt_fp16_enable": "1"}))
    return chain
