"""TensorRT and TensorRT for RTX: a bundle's engines, run with overlapped copies and CUDA graphs.

Both modules have the same names, so one backend is written against whichever built the engines.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ssn.core.bundle import Bundle
from ssn.core.engine_record import ENCODER_ENGINE, FLOW_ENGINE, EngineEntry, EngineRecord
from ssn.core.engines import refusal
from ssn.core.errors import BackendError, first_line
from ssn.runtime.backend import Batch, StageTimes
from ssn.runtime.cuda import Cuda
from ssn.runtime.device_pipeline import DevicePipeline
from ssn.runtime.engine_stages import EngineStages
from ssn.runtime.memory import MEGABYTE, BatchLayout, Footprint, fit_windows
from ssn.runtime.schedule import DEFAULT_SLOTS, Schedule


class TensorRTBackend:
    """Two engines, deserialised from verified bytes.

    Parameters
    ----------
    bundle : Bundle
    entry : the engines to run, one of `find_engines(bundle)`
    batch : slices at once; as many as the engines take if not given
    memory_limit : bytes on the device; it lowers the batch
    overlap, graphs : off only to measure what they bring

    Attributes
    ----------
    pipeline : what the engines run in
    peak_bytes : on the device

    Raises
    ------
    BackendError
        If there is no GPU, the engines are for another machine or bundle, or not even one window fits.
    BundleError
        If an engine file was modified.
    """

    name = "tensorrt"

    def __init__(
        self,
        bundle: Bundle,
        entry: EngineEntry,
        *,
        batch: int | None = None,
        memory_limit: int | None = None,
        overlap: bool = True,
        graphs: bool = True,
    ) -> None:
        self._cuda = Cuda()  # first, always: without a device TensorRT's own runtime may crash
        try:
            record, module = _admit(bundle, entry, self._cuda)
            layout = BatchLayout.of(
                bundle.spec, record.inputs[ENCODER_ENGINE][0].dtype, record.outputs[ENCODER_ENGINE][0].dtype
            )
            self._stages = EngineStages(module, entry, self._cuda, layout)
            most = record.key.max_windows
            if batch is not None:
                most = min(max(1, batch // layout.window), most)
            schedule = Schedule(DEFAULT_SLOTS if overlap else 1, overlap)
            weights = sum(record.files[name]["bytes"] for name in (ENCODER_ENGINE, FLOW_ENGINE))
            footprint = Footprint(layout, schedule.slots, weights, self._stages.workspace)
            windows = fit_windows(footprint, memory_limit, most)
            self._stages.reserve(windows)
            self.pipeline = DevicePipeline(self._cuda, layout, windows, self._stages, schedule, graphs=graphs)
        except BaseException:
            self._cuda.release()
            raise
        self.max_slices = self.pipeline.max_slices
        self.at_once = 1
        self._record, self._schedule = record, schedule
        self.peak_bytes = footprint.total_bytes(windows)

    def describe(self) -> dict[str, Any]:
        """Say what runs, for the record."""
        key = self._record.key
        return {
            "backend": self.name,
            "module": key.builder,
            "version": key.builder_version,
            "engine": key.slug,
            "precision": key.precision,
            "gpu": self._cuda.device.name,
            "driver": self._cuda.device.driver,
            "batch": self.max_slices,
            "streams": len(self._schedule.lanes),
            "cuda_graphs": self.pipeline.graphs,
            "graph_problem": self.pipeline.graph_problem,
            "device_memory_mb": round(self.peak_bytes / MEGABYTE, 1),
        }

    def run(self, batches: Iterable[Batch], times: StageTimes) -> Generator[NDArray[np.float32], None, None]:
        """Log-likelihood per dimension (L,) of each batch's places, in order."""
        return self.pipeline.run(batches, times)

    def features(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.float32]]:
        """Features (W, C, G, G) of each batch's windows, before whitening, in order; nothing overlaps."""
        return self.pipeline.features(batches)

    def scores(
        self, features: Iterable[NDArray[np.float32]], batches: Iterable[Batch]
    ) -> Iterator[NDArray[np.float32]]:
        """Log-likelihood per dimension (L,) of each batch's places from its features, in order; nothing overlaps."""
        return self.pipeline.scores(features, batches)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._cuda.drain()
        self._stages.close()  # contexts before the memory that they point to
        self._cuda.release()


def load_module(name: str) -> Any:
    """Import `tensorrt` or `tensorrt_rtx`.

    Raises
    ------
    BackendError
        If it isn't installed or can't be loaded.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        package = name.replace("_", "-")
        reason = first_line(error)
        raise BackendError(f"{name} cannot be loaded ({reason}); install it with: pip install {package}") from error


def _admit(bundle: Bundle, entry: EngineEntry, cuda: Cuda) -> tuple[EngineRecord, Any]:
    """Record and module of engines that may run here; nothing of them has been deserialised."""
    if entry.record is None:
        raise BackendError(entry.problem or f"{entry.folder}: has no record")
    module = load_module(entry.record.key.builder)
    reason = refusal(entry.record, bundle, cuda.device, entry.record.key.builder, module.__version__)
    if reason is not None:
        raise BackendError(reason)
    return entry.record, module
