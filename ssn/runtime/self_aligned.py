"""A backend that aligns each volume by its own features: for a scanner of which no healthy volumes are at hand."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ssn.core.atomic import printable
from ssn.core.bundle import Bundle
from ssn.core.errors import BundleError
from ssn.runtime.align import moments_of, read_whitening
from ssn.runtime.backend import ALIGNED, Batch, StageTimes
from ssn.runtime.onnxruntime import OnnxRuntimeBackend

SHARE = 0.5  # of the way to the training's features: what is left is of its person, and of its lesion


class SelfAlignedBackend:
    """ONNX Runtime, with the features of a volume brought `share` of the way to those that the flow was trained on.

    A volume's features are all held, because its last slice counts as its first does.

    Raises
    ------
    BundleError
        If the bundle does not whiten its features: then it does not know those that it was trained on.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, backend: OnnxRuntimeBackend, share: float = SHARE) -> None:
        whitening = read_whitening(bundle)
        if whitening is None:
            raise BundleError(
                f"{printable(bundle.folder)}: does not whiten all its features, so a volume's cannot be aligned; "
                "leave out --align"
            )
        self._whitening = whitening
        self._bundle, self._backend, self._share = bundle, backend, share
        self.max_slices, self.at_once = backend.max_slices, backend.at_once

    def describe(self) -> dict[str, Any]:
        """Say what runs, for the record."""
        return self._backend.describe() | {ALIGNED: self._share}

    def run(self, batches: Iterable[Batch], times: StageTimes) -> Generator[NDArray[np.float32], None, None]:
        """Log-likelihood per dimension (L,) of each batch's places, in order, after the last is encoded."""
        held = list(batches)
        start = time.perf_counter()
        features = list(self._backend.features(held))
        times.add("encoder", time.perf_counter() - start)
        start = time.perf_counter()
        moments = moments_of(features, held, self._bundle, self._whitening.mean)
        matrix, offset = (part.astype(np.float32) for part in self._whitening.align(moments, self._share))
        for index, found in enumerate(features):  # one by one: a second copy of all is not needed
            cells = found.reshape(*found.shape[:2], -1)
            features[index] = (matrix @ cells + offset[:, None]).reshape(found.shape)
        times.add("align", time.perf_counter() - start)
        start = time.perf_counter()
        values = list(self._backend.scores(features, held))
        times.add("flow", time.perf_counter() - start)
        yield from values

    def __enter__(self) -> Self:
        self._backend.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._backend.__exit__(*error)
