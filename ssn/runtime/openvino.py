"""OpenVINO on the CPU."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, Bundle
from ssn.core.errors import BackendError, BundleError, first_line
from ssn.runtime.backend import Batch, StageTimes, check_features, check_slices


class OpenVinoBackend:
    """Two compiled models made from the bundle's verified bytes.

    Parameters
    ----------
    bundle : Bundle
    threads : int or None
        Threads; None lets OpenVINO take all cores.
    at_once : volumes that are computed at the same time, by threads that share the models
    precision : of the networks inside; "bf16" differs between machines, and is for measuring what it would bring

    Raises
    ------
    BackendError
        If OpenVINO isn't installed or doesn't start.
    BundleError
        If it refuses a graph.
    """

    name = "openvino"
    max_slices: int | None = None

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        at_once: int = 1,
    ) -> None:
        if threads is not None and threads < 1:
            raise BackendError(f"openvino: {threads} threads are not possible; give 1 or more")
        try:
            import openvino
        except (ImportError, OSError, RuntimeError) as error:
            reason = first_line(error)
            raise BackendError(
                f"openvino cannot be loaded ({reason}); install it with: pip install openvino"
            ) from error
        self._version = openvino.__version__
        self._bundle, self._threads, self._precision, self.at_once = bundle, threads, precision, at_once
        # Said to it: by itself it would compute in bfloat16 where the CPU has it, and differ from other machines.
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if at_once > 1:
            options |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": at_once}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        self._encoder, self._flow = (self._compile(core, bundle, name, options) for name in (ENCODER_FILE, FLOW_FILE))
        sides = list(self._encoder.input("slices").partial_shape)[2:]
        self._takes = [side.get_length() for side in sides]

    @staticmethod
    def _compile(core: Any, bundle: Bundle, name: str, options: dict[str, Any]) -> Any:
        data = bundle.read(name)
        try:
            return core.compile_model(core.read_model(data), "CPU", options)
        except RuntimeError as error:
            reason = first_line(error)
            raise BundleError(f"{bundle.folder / name}: OpenVINO refuses it ({reason})") from error

    def describe(self) -> dict[str, Any]:
        """Say what runs, for the record."""
        return {
            "backend": self.name,
            "version": self._version,
            "provider": "CPU",
            "precision": self._precision,
            "threads": self._threads or "all cores",
            "volumes_at_once": self.at_once,
        }

    def run(self, batches: Iterable[Batch], times: StageTimes) -> Generator[NDArray[np.float32], None, None]:
        """Log-likelihood per dimension (L,) of each batch's places, in order."""
        encoder, flow = self._encoder.create_infer_request(), self._flow.create_infer_request()
        for batch in batches:
            start = time.perf_counter()
            features = self._encode(encoder, batch)
            encoded = time.perf_counter()
            values = _score(flow, features, batch)
            times.add("encoder", encoded - start)
            times.add("flow", time.perf_counter() - encoded)
            yield values

    def features(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.float32]]:
        """Features (W, C, G, G) of each batch's windows, before whitening, in order."""
        encoder = self._encoder.create_infer_request()
        for batch in batches:
            yield np.array(self._encode(encoder, batch), np.float32)  # a copy: the next batch would overwrite it

    def scores(
        self, features: Iterable[NDArray[np.float32]], batches: Iterable[Batch]
    ) -> Iterator[NDArray[np.float32]]:
        """Log-likelihood per dimension (L,) of each batch's places from its features (W, C, G, G), in order."""
        flow = self._flow.create_infer_request()
        for found, batch in zip(features, batches, strict=True):
            yield _score(flow, found, batch)

    def _encode(self, encoder: Any, batch: Batch) -> NDArray[np.float32]:
        check_slices(self._takes, batch, self._bundle)
        features: NDArray[np.float32] = encoder.infer({"slices": np.ascontiguousarray(batch.slices)})["features"]
        check_features(features.shape, batch, self._bundle)
        return features

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        del self._encoder, self._flow


def _score(flow: Any, features: NDArray[np.float32], batch: Batch) -> NDArray[np.float32]:
    first = np.array([batch.first], np.int64)
    values = flow.infer({"features": features, "places": batch.places, "first": first})["log_likelihood"]
    return np.array(values, np.float32)  # a copy: the next batch would overwrite it
