"""A volume's batches through the device: the schedule carried out with CUDA streams, events and graphs.

What computes is given from outside (`Stages`): TensorRT in the product, other frameworks in measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ssn.core.errors import BackendError
from ssn.runtime.backend import Batch, StageTimes
from ssn.runtime.cuda import Cuda
from ssn.runtime.half import copy_as_half
from ssn.runtime.memory import BatchLayout
from ssn.runtime.schedule import DEVICE_STAGES, Schedule, Stage, Step, bucket

# Shapes that are computed: half and full windows, quarters of the places. Each has its graph in each slot; more
# of them would waste less on padding and cost more time at the start.
WINDOW_PARTS, PLACE_PARTS = 2, 4


def batch_shapes(windows: int, cells: int) -> list[tuple[int, int]]:
    """Every (windows, places) that batches of up to `windows` windows are computed as."""
    parts = sorted({bucket(count, windows, WINDOW_PARTS) for count in range(1, windows + 1)})
    shapes = []
    for part in parts:
        most = part * cells**2
        sizes = {bucket(-(-most * share // PLACE_PARTS), most, PLACE_PARTS) for share in range(1, PLACE_PARTS + 1)}
        shapes += [(part, places) for places in sorted(sizes)]
    return shapes


@dataclass(frozen=True)
class Slot:
    """One set of buffers; the first four are pinned host arrays, the others device addresses."""

    number: int
    slices: NDArray[Any]  # (N, 1, H, W)
    places: NDArray[np.int64]  # (L,)
    first: NDArray[np.int64]  # (1,)
    results: NDArray[np.float32]  # (L,)
    device_slices: int
    device_places: int
    device_first: int
    device_features: int
    device_values: int


class Stages(Protocol):
    """What computes: both queue their work on a stream and return at once."""

    def encoder(self, slot: Slot, windows: int, stream: Any) -> None:
        """Features of the slot's first `windows` windows."""

    def flow(self, slot: Slot, windows: int, places: int, stream: Any) -> None:
        """Log-likelihood of the slot's first `places` places."""


class DevicePipeline:
    """Buffers for the largest batch, allocated once, and the batches that pass through them.

    Parameters
    ----------
    cuda : holds all that is taken from the device, and gives it back
    windows : most windows a batch may have
    graphs : capture each shape's work once and launch the graph from then on

    Attributes
    ----------
    max_slices : most slices of the grid that a batch may have
    """

    def __init__(
        self,
        cuda: Cuda,
        layout: BatchLayout,
        windows: int,
        stages: Stages,
        schedule: Schedule,
        *,
        graphs: bool = True,
    ) -> None:
        self.graphs = graphs
        self.graph_problem: str | None = None
        self.max_slices: int | None = windows * layout.window
        self._cuda, self._layout, self._windows, self._stages, self._schedule = cuda, layout, windows, stages, schedule
        self._slots = [self._allocate(number) for number in range(schedule.slots)]
        self._streams = {lane: cuda.stream() for lane in schedule.lanes}
        pairs = [(stage, slot.number) for stage in DEVICE_STAGES for slot in self._slots]
        self._begins = {pair: cuda.event() for pair in pairs}
        self._ends = {pair: cuda.event() for pair in pairs}
        self._captured: dict[tuple[Stage, int, int, int], Any] = {}

    def _allocate(self, number: int) -> Slot:
        cuda, layout, windows = self._cuda, self._layout, self._windows
        places = windows * layout.cells**2
        shape = (windows * layout.each, 1, layout.plane, layout.plane)
        return Slot(
            number,
            slices=cuda.pinned(shape, layout.slices_dtype),
            places=cuda.pinned((places,), np.int64),
            first=cuda.pinned((1,), np.int64),
            results=cuda.pinned((places,), np.float32),
            device_slices=cuda.device_buffer(windows * layout.slice_bytes),
            device_places=cuda.device_buffer(places * 8),
            device_first=cuda.device_buffer(8),
            device_features=cuda.device_buffer(windows * layout.feature_bytes),
            device_values=cuda.device_buffer(places * 4),
        )

    def run(self, batches: Iterable[Batch], times: StageTimes) -> Generator[NDArray[np.float32], None, None]:
        """Log-likelihood per dimension (L,) of each batch, in order. Stage times are the device's own."""
        running: dict[int, Batch] = {}
        count = 0
        try:
            for batch in batches:
                running[count] = batch
                for step in self._schedule.begin(count):
                    yield from self._take(step, running, times)
                count += 1
            for step in self._schedule.finish(count):
                yield from self._take(step, running, times)
        finally:
            if (
                running and not self._cuda.released
            ):  # the caller stopped early: nothing may still write when the slots are used again
                for stream in self._streams.values():
                    self._cuda.synchronize_stream(stream)

    def features(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.float32]]:
        """Features (W, C, G, G) of each batch's windows, in order, each brought to the host before the next begins."""
        slot, stream = self._slots[0], self._streams["compute"]
        for batch in batches:
            self._fill(slot, batch)
            self._queue("copy_in", slot, batch, stream)
            self._queue("encoder", slot, batch, stream)
            staged = self._staged(batch)
            self._cuda.copy_out(staged, slot.device_features, stream)
            self._cuda.synchronize_stream(stream)
            yield staged.astype(np.float32)

    def scores(
        self, features: Iterable[NDArray[np.float32]], batches: Iterable[Batch]
    ) -> Iterator[NDArray[np.float32]]:
        """Log-likelihood per dimension (L,) of each batch from its features (W, C, G, G), in order."""
        slot, stream = self._slots[0], self._streams["compute"]
        for found, batch in zip(features, batches, strict=True):
            staged = self._staged(batch)
            np.copyto(staged, found, casting="same_kind")
            self._fill_places(slot, batch)
            self._cuda.copy_in(slot.device_features, staged, stream)
            self._copy_places(slot, batch, stream)
            self._queue("flow", slot, batch, stream)
            self._queue("copy_out", slot, batch, stream)
            self._cuda.synchronize_stream(stream)
            yield slot.results[: len(batch.places)].copy()

    @cached_property
    def _features(self) -> NDArray[Any]:
        """Pinned: features of the largest batch on their way to the host or back, for those who ask for them."""
        layout = self._layout
        return self._cuda.pinned((self._windows, layout.channels, layout.cells, layout.cells), layout.features_dtype)

    def _staged(self, batch: Batch) -> NDArray[Any]:
        return self._features[: len(batch.slices) // self._layout.each]

    def _take(self, step: Step, running: dict[int, Batch], times: StageTimes) -> Iterator[NDArray[np.float32]]:
        slot, batch = self._slots[step.slot], running[step.batch]
        if step.stage == "fill":
            self._fill(slot, batch)
            return
        if step.stage == "read":
            self._cuda.synchronize(self._ends["copy_out", slot.number])
            values = slot.results[: len(batch.places)].copy()
            for stage in DEVICE_STAGES:
                pair = stage, slot.number
                times.add(stage, self._cuda.seconds(self._begins[pair], self._ends[pair]))
            del running[step.batch]
            yield values
            return
        stream = self._streams[step.lane]
        if step.waits is not None:
            self._cuda.wait(stream, self._ends[step.waits, slot.number])
        self._cuda.record(self._begins[step.stage, slot.number], stream)
        self._queue(step.stage, slot, batch, stream)
        self._cuda.record(self._ends[step.stage, slot.number], stream)

    def _shape(self, batch: Batch) -> tuple[int, int]:
        """Windows and places that are computed for a batch: the next sizes up."""
        windows = bucket(len(batch.slices) // self._layout.each, self._windows, WINDOW_PARTS)
        return windows, bucket(len(batch.places), windows * self._layout.cells**2, PLACE_PARTS)

    def _fill(self, slot: Slot, batch: Batch) -> None:
        # Slices past the batch's own keep what an earlier batch left: no place of this batch looks at them.
        slices = slot.slices[: len(batch.slices)]
        if slices.dtype == np.float16:
            copy_as_half(slices, batch.slices)
        else:
            np.copyto(slices, batch.slices)
        self._fill_places(slot, batch)

    def _fill_places(self, slot: Slot, batch: Batch) -> None:
        slot.places[: len(batch.places)] = batch.places
        slot.places[len(batch.places) : self._shape(batch)[1]] = batch.places[-1]
        slot.first[0] = batch.first

    def _queue(self, stage: Stage, slot: Slot, batch: Batch, stream: Any) -> None:
        cuda = self._cuda
        windows, places = self._shape(batch)
        if stage == "copy_in":
            cuda.copy_in(slot.device_slices, slot.slices[: len(batch.slices)], stream)
            self._copy_places(slot, batch, stream)
        elif stage == "copy_out":
            cuda.copy_out(slot.results[: len(batch.places)], slot.device_values, stream)
        elif stage == "encoder":
            self._compute((stage, slot.number, windows, 0), lambda: self._stages.encoder(slot, windows, stream), stream)
        else:
            key = stage, slot.number, windows, places
            self._compute(key, lambda: self._stages.flow(slot, windows, places, stream), stream)

    def _copy_places(self, slot: Slot, batch: Batch, stream: Any) -> None:
        self._cuda.copy_in(slot.device_places, slot.places[: self._shape(batch)[1]], stream)
        self._cuda.copy_in(slot.device_first, slot.first, stream)

    def _compute(self, key: tuple[Stage, int, int, int], queue: Callable[[], None], stream: Any) -> None:
        if not self.graphs:
            queue()
        elif key in self._captured:
            self._cuda.launch(self._captured[key], stream)
        else:
            # The first time runs outside of a graph: what is loaded or compiled then cannot be captured.
            queue()
            self._cuda.synchronize_stream(stream)
            try:
                self._captured[key] = self._cuda.capture(stream, queue)
            except BackendError as error:
                self.graphs, self.graph_problem = False, str(error)
