"""A backend that aligns each volume by its own features: for a scanner of which no healthy volumes are at hand."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ssn.core.alignment import Whitening
from ssn.core.atomic import printable
from ssn.core.bundle import Bundle
from ssn.core.errors import BundleError
from ssn.core.self_alignment import NOT_WHITENED, SHARE, align_to_itself
from ssn.runtime.align import at_places, read_whitening
from ssn.runtime.backend import ALIGNED, Batch, FeatureBackend, StageTimes


def whitening_of(bundle: Bundle) -> Whitening:
    """Read the whitening of a bundle whose volumes are to be aligned.

    Raises
    ------
    BundleError
        If it does not whiten its features: then it does not know those that it was trained on.
    """
    whitening = read_whitening(bundle)
    if whitening is None:
        raise BundleError(f"{printable(bundle.folder)}: {NOT_WHITENED}")
    return whitening


class SelfAlignedBackend:
    """A backend, with the features of a volume brought `share` of the way to those that the flow was trained on.

    The features of a volume's places are all held, because its last slice counts as its first does.

    Parameters
    ----------
    whitening : the bundle's (`whitening_of`)
    """

    def __init__(self, bundle: Bundle, whitening: Whitening, backend: FeatureBackend, share: float = SHARE) -> None:
        self._bundle, self._whitening, self._backend, self._share = bundle, whitening, backend, share
        self.name, self.max_slices, self.at_once = backend.name, backend.max_slices, backend.at_once

    def describe(self) -> dict[str, Any]:
        """Say what runs, for the record."""
        return self._backend.describe() | {ALIGNED: self._share}

    def run(self, batches: Iterable[Batch], times: StageTimes) -> Generator[NDArray[np.float32], None, None]:
        """Log-likelihood per dimension (L,) of each batch's places, in order, after the last is encoded."""
        held = list(batches)
        cells = self._bundle.spec.cells
        start = time.perf_counter()
        found = zip(self._backend.features(held), held, strict=True)
        rows = np.concatenate([at_places(features, batch, cells) for features, batch in found])
        times.add("encoder", time.perf_counter() - start)
        start = time.perf_counter()
        places = np.concatenate([batch.places for batch in held])

        def ask(features: NDArray[np.float32], where: NDArray[np.int64]) -> NDArray[np.float32]:
            return np.concatenate(list(self._scores(features, _parts(held, where))))

        align_to_itself(rows, places, self._whitening, self._bundle.calibration, ask, self._share)
        times.add("align", time.perf_counter() - start)
        start = time.perf_counter()
        for values in self._scores(rows, held):
            times.add("flow", time.perf_counter() - start)
            yield values
            start = time.perf_counter()

    def _scores(self, rows: NDArray[np.float32], batches: Sequence[Batch]) -> Iterator[NDArray[np.float32]]:
        """Log-likelihood (L,) of each batch's places, whose features are the next of `rows` (L, C)."""
        cells = self._bundle.spec.cells
        each = self._bundle.spec.slices_a_window

        def features() -> Iterator[NDArray[np.float32]]:
            start = 0
            for batch in batches:
                stop = start + len(batch.places)
                grid = np.zeros((len(batch.slices) // each, rows.shape[1], cells**2), np.float32)
                window, cell = np.divmod(batch.places - batch.first * cells**2, cells**2)
                grid[window, :, cell] = rows[start:stop]
                yield grid.reshape(*grid.shape[:2], cells, cells)
                start = stop

        return self._backend.scores(features(), batches)

    def __enter__(self) -> Self:
        self._backend.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._backend.__exit__(*error)


def _parts(batches: Iterable[Batch], places: NDArray[np.int64]) -> list[Batch]:
    """Each batch at those of its places that are among some (L,), ascending; batches without one are left out."""
    parts = []
    for batch in batches:
        start, stop = np.searchsorted(places, (batch.places[0], batch.places[-1] + 1))
        if start < stop:
            parts.append(Batch(batch.slices, places[start:stop], batch.first))
    return parts
