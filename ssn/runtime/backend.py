"""The one interface of all backends, and the plan of what they compute."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ssn.core.bundle import Bundle
from ssn.core.errors import BundleError
from ssn.core.slices import SliceStack

# A batch is counted in slices of the grid, three a window, whether the encoder sees all three or one thick one.
DEFAULT_BATCH = 6  # on a CPU: docs/performance.md has the measurement
ALIGNED = "aligned_to_itself"  # what a backend that does so says of it in its description


@dataclass(frozen=True)
class Batch:
    """Consecutive windows that are computed together.

    Attributes
    ----------
    slices : (N, 1, H, W) float32, a view: what the encoder sees
    places : (L,) int64, canonical places of the map cells with brain in them
    first : canonical window of the first slice
    """

    slices: NDArray[np.float32]
    places: NDArray[np.int64]
    first: int


@dataclass
class StageTimes:
    """Wall-clock seconds that each stage took."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        """Add to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


class Runs(Protocol):
    """Something that computes batches."""

    max_slices: int | None  # most slices that a batch may have; None: any number

    def run(self, batches: Iterable[Batch], times: StageTimes) -> Generator[NDArray[np.float32], None, None]:
        """Log-likelihood per dimension (L,) of each batch's places, in order.

        It may take the next batches before it gives a result: that is how copies and computing overlap.
        """


class Backend(Runs, Protocol):
    """Something that runs a bundle's two graphs. It holds resources: use it in a `with` statement."""

    name: str
    at_once: int  # threads that may each be in a `run` of their own

    def describe(self) -> dict[str, Any]:
        """Say what runs, for the record: provider, threads, versions."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class FeatureBackend(Backend, Protocol):
    """One whose encoder and flow can be run apart, for those who need the features of a whole volume first."""

    def features(self, batches: Iterable[Batch]) -> Iterator[NDArray[np.float32]]:
        """Features (W, C, G, G) of each batch's windows, before whitening, in order."""

    def scores(
        self, features: Iterable[NDArray[np.float32]], batches: Iterable[Batch]
    ) -> Iterator[NDArray[np.float32]]:
        """Log-likelihood per dimension (L,) of each batch's places from its features (W, C, G, G), in order."""


def _misfit(bundle: Bundle, reason: str) -> BundleError:
    return BundleError(f"{bundle.folder}: its manifest does not describe its graphs ({reason}); get the bundle again")


def check_slices(takes: Sequence[int], batch: Batch, bundle: Bundle) -> None:
    """Raise BundleError if the encoder takes slices (H, W) of another size than the manifest had them cut."""
    if tuple(takes) != batch.slices.shape[2:]:
        raise _misfit(bundle, f"the encoder takes slices of {tuple(takes)}, not {batch.slices.shape[2:]}")


def check_features(shape: Sequence[int], batch: Batch, bundle: Bundle) -> None:
    """Raise BundleError if the encoder's output isn't what the manifest says: places would get others' features."""
    spec = bundle.spec
    cells = (side * spec.cells // spec.grid.plane for side in batch.slices.shape[2:])
    expected = (len(batch.slices) // spec.slices_a_window, spec.features, *cells)
    if tuple(shape) != expected:
        raise _misfit(bundle, f"features of {len(batch.slices)} slices are {tuple(shape)}, not {expected}")


def plan_batches(stack: SliceStack, occupancy: float, slices: int) -> Iterator[Batch]:
    """Split a stack into batches of at most `slices` slices of the grid; windows without an occupied cell are left out.

    Places come in ascending order, so that concatenated results are in ascending order as well.
    """
    window, each = stack.placement.grid.window, stack.slices_a_window
    cells = stack.occupancy[0].size
    occupied: NDArray[np.bool_] = stack.occupancy.reshape(-1, cells) >= occupancy
    wanted: NDArray[np.bool_] = np.asarray(occupied.any(1))
    at_once = max(1, slices // window)
    start = 0
    while start < len(wanted):
        if not wanted[start]:
            start += 1
            continue
        stop = start
        while stop < len(wanted) and stop - start < at_once and wanted[stop]:
            stop += 1
        places = np.flatnonzero(occupied[start:stop]) + (stack.first + start) * cells
        yield Batch(stack.slices[start * each : stop * each, None], places, stack.first + start)
        start = stop


def run_batches(
    backend: Runs,
    stack: SliceStack,
    occupancy: float,
    slices: int,
    times: StageTimes,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Places (L,) of a stack and their log-likelihood (L,); `progress` gets the share that is done."""
    if backend.max_slices is not None:
        slices = min(slices, backend.max_slices)
    each, windows = stack.slices_a_window, len(stack.occupancy)
    batches = list(plan_batches(stack, occupancy, slices))  # views: they cost nothing
    values = []
    # Closed before the backend is, also on Ctrl-C: what is queued must end while its buffers are there.
    with closing(backend.run(batches, times)) as results:
        for batch, result in zip(batches, results, strict=True):
            values.append(result)
            progress((batch.first - stack.first + len(batch.slices) / each) / windows)
    return np.concatenate([batch.places for batch in batches]), np.concatenate(values)
