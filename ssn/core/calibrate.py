"""Calibration: what the trained flow says of healthy volumes it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssn.core.errors import DataError
from ssn.core.geometry import apply_separable, gaussian_matrix
from ssn.core.likeness import grey_blocks, mean_blocks
from ssn.core.look import Look
from ssn.core.scoring import Calibration, volume_score
from ssn.core.volume import Volume

# Statistics of a place are shared with its neighbours: a Gaussian of this many cells (depth, row, column).
NEIGHBOURHOOD = (1.0, 1.0, 1.0)
PRIOR_WEIGHT = 3.0  # volumes' worth of the whole brain's statistics, for places that few volumes reach
FOLDS = 5  # each volume is compared with those of the other folds; volume i is in fold i modulo their number
_HISTOGRAM = np.linspace(-20, 100, 24001)

LogLikelihoods = Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]]  # of each volume: places, values
Statistics = Callable[[LogLikelihoods, tuple[int, int, int]], tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True)
class HealthyVolume:
    """What calibration needs of a healthy volume: no slices, so that many fit into memory.

    Attributes
    ----------
    look : where its cells and voxels lie, without its slices
    zooms : mm
    voxel_ml : volume of a voxel
    places : (L,), ascending
    log_likelihood : (L,), per dimension
    grey : what it looks like (`ssn.core.likeness.grey_blocks`); None where that is not to be kept
    """

    look: Look
    zooms: tuple[float, float, float]
    voxel_ml: float
    places: NDArray[np.int64]
    log_likelihood: NDArray[np.float32]
    grey: NDArray[np.float32] | None = None

    @classmethod
    def of(
        cls, volume: Volume, look: Look, places: NDArray[np.int64], log_likelihood: NDArray[np.float32]
    ) -> HealthyVolume:
        """Keep what is needed of a volume that the flow has seen."""
        grey = grey_blocks(look.stack)
        return cls(look.without_slices(), volume.zooms, volume.voxel_ml, places, log_likelihood, grey)


def place_statistics(
    log_likelihoods: LogLikelihoods, shape: tuple[int, int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of the log-likelihood at each place of the canonical grid.

    Parameters
    ----------
    log_likelihoods : of each healthy volume, places (L,) and log-likelihood per dimension (L,)
    shape : (windows, G, G)

    Returns
    -------
    mean, deviation : `shape` float32
    """
    count, total, square = (np.zeros(int(np.prod(shape))) for _ in range(3))
    for places, values in log_likelihoods:
        count[places] += 1
        total[places] += values
        square[places] += values.astype(np.float64) ** 2
    everywhere = np.concatenate([values for _, values in log_likelihoods]).astype(np.float64)
    windows, rows, columns = (
        gaussian_matrix(size, sigma, border="zero") for size, sigma in zip(shape, NEIGHBOURHOOD, strict=True)
    )

    def shared(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return apply_separable(sums.reshape(shape), (windows, rows, columns))

    weight = shared(count) + PRIOR_WEIGHT
    mean = (shared(total) + PRIOR_WEIGHT * everywhere.mean()) / weight
    second = (shared(square) + PRIOR_WEIGHT * (everywhere**2).mean()) / weight
    deviation = np.sqrt((second - mean**2).clip(1e-8, None))
    return mean.astype(np.float32), deviation.astype(np.float32)


def brain_statistics(
    log_likelihoods: LogLikelihoods, shape: tuple[int, int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One mean and standard deviation for the whole brain, as `place_statistics` gives them; for comparison."""
    everywhere = np.concatenate([values for _, values in log_likelihoods])
    mean, deviation = everywhere.mean(dtype=np.float64), everywhere.std(dtype=np.float64)
    return np.full(shape, mean, np.float32), np.full(shape, deviation, np.float32)


def calibrate(
    volumes: Iterable[HealthyVolume],
    *,
    windows: int,
    cells: int,
    sigma: float,
    rate: float,
    statistics: Statistics = place_statistics,
) -> Calibration:
    """Calibrate on healthy volumes, leaving each one's own log-likelihoods out of what it is compared with.

    Parameters
    ----------
    sigma : mm, of the map's Gaussian
    rate : share of healthy brain voxels that may be above the threshold
    statistics : what healthy log-likelihoods are at each place

    Raises
    ------
    DataError
        If the volumes are so unlike each other that no threshold can be told.
    """
    kept = list(volumes)
    shape = (windows, cells, cells)
    everyone = [(healthy.places, healthy.log_likelihood) for healthy in kept]
    mean, deviation = statistics(everyone, shape)
    folds = min(FOLDS, len(kept))
    histogram = _no_voxels()
    moments = np.zeros(3)
    scores = np.zeros(len(kept), np.float32)
    for fold in range(folds):
        others = [pair for index, pair in enumerate(everyone) if index % folds != fold] or everyone
        without = Calibration(*statistics(others, shape), 1.0, sigma, 0.0, rate, np.zeros(1, np.float32))
        for index in range(fold, len(kept), folds):
            healthy = kept[index]
            brain = healthy.look.read.brain
            score_map = healthy.look.score_map(healthy.log_likelihood, healthy.places, without)
            inside = score_map[brain]
            histogram += _voxels(inside)
            moments += inside.size, inside.sum(dtype=np.float64), np.square(inside, dtype=np.float64).sum()
            scores[index] = volume_score(score_map, brain, healthy.voxel_ml)
    gain = 1 / np.sqrt(moments[2] / moments[0] - (moments[1] / moments[0]) ** 2)
    threshold = _threshold(histogram, rate)
    looks = [healthy.grey for healthy in kept if healthy.grey is not None]
    return Calibration(
        mean,
        deviation,
        gain=float(gain),
        sigma=sigma,
        threshold=threshold * float(gain),
        threshold_rate=rate,
        healthy_scores=np.sort(scores * np.float32(gain)),
        voxel_mm=float(np.median([max(healthy.zooms) for healthy in kept])),
        grey=mean_blocks(looks) if looks else None,
    )


def with_threshold_of(calibration: Calibration, unseen: Iterable[tuple[NDArray[np.float32], float]]) -> Calibration:
    """Take threshold and healthy volume scores from heads or scanners that a model was not trained on.

    Healthy volumes of the training's own heads look healthier to a model than those of the next head will.

    Parameters
    ----------
    unseen : of each healthy volume the map's brain voxels (N,) and its score, by the calibration of a model that was
        trained in the same way without that head

    Raises
    ------
    DataError
        If the volumes are so unlike what those models know that no threshold can be told.
    """
    histogram, scores = _no_voxels(), []
    for inside, score in unseen:
        histogram += _voxels(inside)
        scores.append(score)
    threshold = _threshold(histogram, calibration.threshold_rate)
    return replace(calibration, threshold=threshold, healthy_scores=np.sort(np.array(scores, np.float32)))


def _no_voxels() -> NDArray[np.float64]:
    return np.zeros(len(_HISTOGRAM) - 1)


def _voxels(inside: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.histogram(inside.clip(_HISTOGRAM[0], _HISTOGRAM[-1]), _HISTOGRAM)[0]


def _threshold(histogram: NDArray[np.float64], rate: float) -> float:
    """Lowest edge of the histogram that a share of `rate` or less is above."""
    above = histogram[::-1].cumsum()[::-1] / histogram.sum()
    threshold = float(_HISTOGRAM[int((above > rate).sum())])
    if threshold == _HISTOGRAM[-1]:
        raise DataError(
            f"more than {rate:.2%} of the healthy volumes' voxels are {threshold:g} standard deviations and more above "
            "the others: some are no healthy brains of this kind; look at them, and leave those out"
        )
    return threshold
