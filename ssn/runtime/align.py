"""A bundle whose features are brought from other healthy volumes to those that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssn.core.alignment import Matrix, Moments, Whitening
from ssn.core.bundle import FLOW_FILE, Bundle
from ssn.core.errors import BundleError, SsnError
from ssn.core.onnx_data import weights, with_weights
from ssn.runtime.backend import DEFAULT_BATCH, Batch, FeatureBackend, plan_batches
from ssn.runtime.healthy import read_healthy, refuse_few

SHARE = 0.75  # of the way to the training's features: the rest is of these people, and not of their scanner
_WEIGHT, _BIAS = "whitening.weight", "whitening.bias"  # as `ssn.export.graphs.FlowGraph` names them


def read_whitening(bundle: Bundle) -> Whitening | None:
    """Read a bundle's whitening; None if it does not whiten its features, all of them.

    Raises
    ------
    BundleError
        If its flow was modified, or no features could come out of its whitening.
    """
    flow = bundle.read(FLOW_FILE)
    try:
        held = weights(flow)
        weight, bias = held.get(_WEIGHT), held.get(_BIAS)
        if weight is None or bias is None or weight.shape != (len(bias), len(bias)):
            return None
        return Whitening(weight, bias)
    except (ValueError, TypeError, np.linalg.LinAlgError) as error:
        raise BundleError(
            f"{bundle.folder / FLOW_FILE}: its whitening is no such thing ({error}); get the bundle again"
        ) from error


def moments_of(
    features: Iterable[NDArray[np.float32]], batches: Iterable[Batch], bundle: Bundle, centre: Matrix
) -> Moments:
    """Sum over a volume's features: (W, C, G, G) of each batch, of which only those at its places count."""
    cells = bundle.spec.cells
    pairs = zip(features, batches, strict=True)
    parts = [Moments.of(at_places(found, batch, cells), centre) for found, batch in pairs]
    return sum(parts[1:], parts[0])


def at_places(features: NDArray[np.float32], batch: Batch, cells: int) -> NDArray[np.float32]:
    """Features (L, C) at a batch's places, of those (W, C, G, G) of its windows; `cells`: G."""
    window, cell = np.divmod(batch.places - batch.first * cells**2, cells**2)
    return features.reshape(*features.shape[:2], -1)[window, :, cell]


@dataclass(frozen=True)
class Alignment:
    """What is needed to align a bundle with healthy volumes.

    Attributes
    ----------
    whitening : the bundle's
    moments : of each volume's features
    share : of the way to the training's features that is gone
    """

    bundle: Bundle
    whitening: Whitening
    moments: Sequence[Moments]
    share: float

    def aligned(self, left_out: slice = slice(0)) -> Bundle:
        """Return the bundle with another whitening: that of the volumes' features, without some of them."""
        without = set(range(len(self.moments))[left_out])
        first, *rest = (one for index, one in enumerate(self.moments) if index not in without)
        now = self.whitening.aligned(sum(rest, first), self.share)
        flow = with_weights(self.bundle.read(FLOW_FILE), {_WEIGHT: now.weight, _BIAS: now.bias})
        return self.bundle.with_graphs({FLOW_FILE: flow})


def measure_alignment(
    paths: Sequence[Path],
    bundle: Bundle,
    whitening: Whitening,
    backend: FeatureBackend,
    *,
    share: float = SHARE,
    batch: int | None = None,
    refused: Callable[[SsnError], None] = lambda error: None,
    progress: Callable[[float], None] = lambda done: None,
) -> Alignment:
    """Measure healthy volumes' features, to align the bundle, which has this whitening, with them.

    Parameters
    ----------
    share : of the way to the training's features that is gone; all of it for another contrast, which has more to undo
    batch : slices at once; it bounds memory and does not change the result; None: the backend's own
    refused : gets the error of each volume that is not usable
    progress : gets how many volumes are done

    Raises
    ------
    DataError
        If there are too few volumes, or any is not usable (`ssn.runtime.healthy`).
    """
    refuse_few(paths)
    slices = batch or backend.max_slices or DEFAULT_BATCH
    measured: list[Moments] = []
    for _, _, look in read_healthy(paths, bundle, refused):
        batches = list(plan_batches(look.stack, bundle.spec.occupancy, slices))
        measured.append(moments_of(backend.features(batches), batches, bundle, whitening.mean))
        progress(len(measured))
    return Alignment(bundle, whitening, measured, share)
