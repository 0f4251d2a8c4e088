"""A volume's features brought towards the training's by their own mean and covariance, where no healthy volumes are.

A lesion would pull both towards itself, and be aligned away: so the places that look least healthy have no say in them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ssn.core.alignment import Moments, Whitening
from ssn.core.scoring import Calibration, cell_scores

SHARE = 0.5  # of the way to the training's features: what is left is of its person
EVERY = 4  # one place of so many is looked at: its neighbours say the same
HEALTHY = 0.9  # of those have a say
_ROWS = 8192  # at once, so that no second copy of all is needed

NOT_WHITENED = "does not whiten all its features, so a volume's cannot be aligned; give --no-align"

Ask = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]


def align_to_itself(
    features: NDArray[np.float32],
    places: NDArray[np.int64],
    whitening: Whitening,
    calibration: Calibration,
    ask: Ask,
    share: float = SHARE,
) -> None:
    """Align a volume's features (L, C) at places (L,), in place; a brain of fewer places than tell C variances stays.

    Features that are not finite stay too, so that the model's answer says so.

    Parameters
    ----------
    calibration : of the model, which says how unlike healthy ones log-likelihoods are
    ask : the model's log-likelihood per dimension (N,) of features before whitening (N, C) at places (N,), ascending
    share : of the way to the training's features that is gone
    """
    sample, where = features[::EVERY], places[::EVERY]
    if len(sample) <= features.shape[1] or not np.isfinite(features).all():
        return
    first = _brought(sample, whitening, Moments.of(sample, whitening.mean), share)
    scores = cell_scores(ask(first, where), where, calibration)
    scores[np.isnan(scores)] = np.inf  # what has no answer does not look healthy
    # Not interpolated: between two infinite scores, as FP16 may give, there is no number.
    healthy = sample[scores <= np.quantile(scores, HEALTHY, method="lower")]
    moments = Moments.of(healthy, whitening.mean)
    for start in range(0, len(features), _ROWS):
        rows = slice(start, start + _ROWS)
        features[rows] = _brought(features[rows], whitening, moments, share)


def _brought(
    features: NDArray[np.float32], whitening: Whitening, moments: Moments, share: float
) -> NDArray[np.float32]:
    matrix, offset = whitening.align(moments, share)
    return np.asarray(features @ matrix.T.astype(np.float32) + offset.astype(np.float32))
