"""ONNX Runtime on the CPU."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, Bundle
from ssn.core.errors import BackendError, BundleError
from ssn.runtime.backend import Batch, StageTimes

_PROVIDERS = ("CPUExecutionProvider",)


class OnnxRuntimeBackend:
    """Two sessions made from the bundle's verified bytes.

    Parameters
    ----------
    bundle : Bundle
    threads : int or None
        Threads of an operator; None lets ONNX Runtime take all cores.

    Raises
    ------
    BundleError
        If ONNX Runtime refuses a graph.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise BackendError(f"onnxruntime: {threads} threads are not possible; give 1 or more")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        # The two sessions take turns: a waiting pool that spins would take the other's cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._encoder = self._session(bundle, ENCODER_FILE, options)
        self._flow = self._session(bundle, FLOW_FILE, options)
        self._threads = threads

    @staticmethod
    def _session(bundle: Bundle, name: str, options: ort.SessionOptions) -> ort.InferenceSession:
        data = bundle.read(name)
        try:
            return ort.InferenceSession(data, options, providers=list(_PROVIDERS))
        except Exception as error:  # its errors share no base class
            reason = str(error).splitlines()[0]
            raise BundleError(f"{bundle.folder / name}: ONNX Runtime refuses it ({reason})") from error

    def describe(self) -> dict[str, Any]:
        """Say what runs, for the record."""
        return {
            "backend": self.name,
            "version": ort.__version__,
            "provider": self._encoder.get_providers()[0],
            "threads": self._threads or "all cores",
        }

    def log_likelihood(self, batch: Batch, times: StageTimes) -> NDArray[np.float32]:
        """Log-likelihood per dimension (L,) of a batch's places."""
        start = time.perf_counter()
        (features,) = self._encoder.run(None, {"slices": batch.slices})
        encoded = time.perf_counter()
        first = np.array([batch.first], np.int64)
        (values,) = self._flow.run(None, {"features": features, "places": batch.places, "first": first})
        times.add("encoder", encoded - start)
        times.add("flow", time.perf_counter() - encoded)
        return np.asarray(values, np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._encoder, self._flow
