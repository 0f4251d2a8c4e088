"""ONNX Runtime: on the CPU, with CUDA, and with its TensorRT provider."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, Bundle
from ssn.core.errors import BackendError
from ssn.runtime.backend import Batch, StageTimes, check_features, check_slices
from ssn.runtime.machine import physical_cores
from ssn.runtime.onnx_sessions import (
    Provider,
    cuda_options,
    open_session,
    provider_chain,
    require_provider,
    session_options,
    told_in_one_line,
)
from ssn.runtime.side_by_side import each_in_order, halves, parts_at_once, run_side_by_side

_GPU_BATCH = 48  # slices: fewer leave a GPU idle


class OnnxRuntimeBackend:
    """Two sessions made from the bundle's verified bytes; in a `run`, features stay where they were computed.

    Parameters
    ----------
    bundle : Bundle
    threads : int or None
        Threads in all, on a CPU; one a core if not given. An even number computes two parts of a batch side by side.
    provider : what computes. What a GPU provider lacks is computed by the next: TensorRT, CUDA, CPU.
    at_once : volumes that are computed at the same time on a CPU, by threads that share the sessions
    memory_limit : bytes that CUDA's memory pools may grow to, half of it for each session
    cuda : options of the CUDA provider that are not ours, for measurements

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
        cuda: Mapping[str, str] | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise BackendError(f"onnxruntime: {threads} threads are not possible; give 1 or more")
        require_provider(provider)
        options = session_options()
        self.at_once = at_once if provider == "cpu" else 1
        share = (threads or physical_cores()) // self.at_once
        self._parts = parts_at_once(share) if provider == "cpu" and self.at_once == 1 else 1
        if provider == "cpu":
            options.intra_op_num_threads = max(1, share // self._parts)
            # Its arena keeps the most that each shape ever took, which malloc gives to the next: as fast, less memory.
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        elif threads is not None:
            options.intra_op_num_threads = threads
        self._bundle, self._threads = bundle, threads
        self.max_slices: int | None = None if provider == "cpu" else _GPU_BATCH
        self._device = "cpu" if provider == "cpu" else "cuda"
        chain = provider_chain(provider, cuda_options(memory_limit) | dict(cuda or {}))
        self._encoder = open_session(bundle, ENCODER_FILE, options, chain, provider)
        self._flow = open_session(bundle, FLOW_FILE, options, chain, provider)
        self._takes = self._encoder.get_inputs()[0].shape[2:]

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

    def features(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.float32]]:
        """Features (W, C, G, G) of each batch's windows, before whitening, in order."""

        @told_in_one_line()
        def encode(batch: Batch) -> NDArray[np.float32]:
            return np.asarray(self._encode(batch).numpy(), np.float32)

        yield from each_in_order(encode, zip(batches), self._parts)

    def scores(
        self, features: Iterable[NDArray[np.float32]], batches: Iterable[Batch]
    ) -> Iterator[NDArray[np.float32]]:
        """Log-likelihood per dimension (L,) of each batch's places from its features (W, C, G, G), in order."""

        @told_in_one_line()
        def flow(found: NDArray[np.float32], batch: Batch) -> NDArray[np.float32]:
            return self._flow_of(ort.OrtValue.ortvalue_from_numpy(found), batch)

        yield from each_in_order(flow, zip(features, batches, strict=True), self._parts)

    def _encode(self, batch: Batch) -> ort.OrtValue:
        check_slices(self._takes, batch, self._bundle)
        encoder = self._encoder.io_binding()
        encoder.bind_cpu_input("slices", np.ascontiguousarray(batch.slices))
        encoder.bind_output("features", self._device)
        self._encoder.run_with_iobinding(encoder)
        (features,) = encoder.get_outputs()
        check_features(features.shape(), batch, self._bundle)
        return features

    @told_in_one_line()
    def _compute(self, batch: Batch, times: StageTimes) -> NDArray[np.float32]:
        start = time.perf_counter()
        features = self._encode(batch)
        encoded = time.perf_counter()
        values = self._flow_of(features, batch)
        times.add("encoder", encoded - start)
        times.add("flow", time.perf_counter() - encoded)
        return values

    def _flow_of(self, features: ort.OrtValue, batch: Batch) -> NDArray[np.float32]:
        flow = self._flow.io_binding()
        flow.bind_ortvalue_input("features", features)
        flow.bind_cpu_input("places", batch.places)
        flow.bind_cpu_input("first", np.array([batch.first], np.int64))
        flow.bind_output("log_likelihood", "cpu")
        self._flow.run_with_iobinding(flow)
        (values,) = flow.copy_outputs_to_cpu()
        return np.asarray(values, np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        del self._encoder, self._flow
