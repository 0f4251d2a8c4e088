"""From log-likelihoods of map cells to a calibrated map, a mask, and scores of slices and of the volume.

Nothing is rescaled within a volume, so values of different volumes compare: a map voxel is a z-score against
held-out healthy volumes at the same place, and so is the volume's score, before its rank among theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssn.core.geometry import apply_separable, gaussian_matrix, upsampling_matrix
from ssn.core.slices import SliceStack
from ssn.core.tails import highest

SCORE_ML = 1.0  # the volume score is the mean of the map's highest millilitre


@dataclass(frozen=True)
class Calibration:
    """What healthy volumes that the flow was not trained on look like.

    Attributes
    ----------
    mean, deviation : (windows, G, G) float32
        Of the log-likelihood per dimension, at each place of the canonical grid.
    gain : float
        Factor that gives the smoothed map of healthy volumes a standard deviation of 1.
    sigma : float
        Of the map's Gaussian, mm in the canonical grid.
    threshold : float
        Of the map: the mask is where the map is above it.
    threshold_rate : float
        Share of healthy brain voxels above `threshold`.
    healthy_scores : (n,) float32, ascending
        Volume scores of the healthy volumes; as the threshold, of other ones after
        `ssn.core.calibrate.with_threshold_of`.
    voxel_mm : float or None
        Longest edge of the healthy volumes' voxels, their median, mm; None where it was not recorded.
    grey : (windows / 2, G / 2, G / 2) float32 or None
        What healthy volumes look like (`ssn.core.likeness`); None where it was not recorded.
    aligned_to_itself : bool
        It is of volumes each aligned by its own features (`ssn.core.self_alignment`), as those that are compared with
        them are to be.
    """

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    gain: float
    sigma: float
    threshold: float
    threshold_rate: float
    healthy_scores: NDArray[np.float32]
    voxel_mm: float | None = None
    grey: NDArray[np.float32] | None = None
    aligned_to_itself: bool = False

    @property
    def volume_threshold(self) -> float:
        """Volume score above which `p_value` is 0.05 or less; of fewer than 19 healthy volumes the highest score."""
        count = self.healthy_scores.size
        return float(self.healthy_scores[min(count + 1 - (count + 1) // 20, count) - 1])


def cell_scores(
    log_likelihood: NDArray[np.float32], places: NDArray[np.int64], calibration: Calibration
) -> NDArray[np.float32]:
    """How many healthy standard deviations below the healthy mean each place's log-likelihood lies; all (L,)."""
    mean, deviation = calibration.mean.ravel()[places], calibration.deviation.ravel()[places]
    return (mean - log_likelihood) / deviation


def smooth_map(
    values: NDArray[np.float32], places: NDArray[np.int64], stack: SliceStack, sigma: float
) -> NDArray[np.float32]:
    """Map (X, Y, Z) in the input's grid from values at places (L,); 0 outside the brain.

    Cells without brain have no say: the Gaussian is normalised by its weight inside the occupied cells, so the
    brain's rim is not averaged with background.
    """
    windows, rows, columns = stack.occupancy.shape
    cells = np.zeros((2, windows * rows * columns), np.float32)
    index = places - stack.first * rows * columns
    cells[0, index], cells[1, index] = values, 1
    result = np.zeros(stack.brain.shape, np.float32)
    inside, brain = result[stack.box], stack.brain[stack.box]
    maps = cells.reshape(2, windows, rows, columns)
    for slab, (value, weight) in stack.placement.native_slabs(maps, stack.first, sigma, stack.box):
        # A voxel out of reach of every occupied cell has no evidence either way: 0.
        np.divide(value, weight, out=inside[:, slab], where=brain[:, slab] & (weight > 0.02))
    return result


def anomaly_map(
    log_likelihood: NDArray[np.float32],
    places: NDArray[np.int64],
    stack: SliceStack,
    calibration: Calibration,
) -> NDArray[np.float32]:
    """Calibrated anomaly map (X, Y, Z): z-score against healthy volumes, 0 outside the brain."""
    scores = cell_scores(log_likelihood, places, calibration) * np.float32(calibration.gain)
    return smooth_map(scores, places, stack, calibration.sigma)


def volume_score(score_map: NDArray[np.float32], brain: NDArray[np.bool_], voxel_ml: float) -> float:
    """Mean of the map's highest `SCORE_ML` millilitres inside the brain: one number, whatever a voxel's volume, ml."""
    values = score_map[brain]
    count = min(max(round(SCORE_ML / voxel_ml), 1), values.size)
    return float(highest(values, count).mean())


def p_value(score: float, healthy_scores: NDArray[np.float32]) -> float:
    """Conformal p-value: the share of healthy volumes that score at least as high, the volume itself counted in.

    (1 + number at least as high) / (1 + number), so it is never 0 and valid for any number of them
    (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, ch. 2).
    """
    return float((1 + (healthy_scores >= score).sum()) / (1 + healthy_scores.size))


def parity_map(log_likelihood: NDArray[np.float32], size: tuple[int, int, int], sigma: float) -> NDArray[np.float32]:
    """Map of the published method, for comparison only: every cell, a Gaussian, max(exp) - exp, then 0 to 1.

    Parameters
    ----------
    log_likelihood : (W, G, G) float32
    size : (D, H, W)
        Of the map.
    """
    matrices = tuple(
        (gaussian_matrix(n, sigma) @ upsampling_matrix(n, cells)).astype(np.float32)
        for n, cells in zip(size, log_likelihood.shape, strict=True)
    )
    density = np.exp(apply_separable(log_likelihood, (matrices[0], matrices[1], matrices[2])))
    anomaly = density.max() - density
    return (anomaly - anomaly.min()) / max(float(anomaly.max() - anomaly.min()), 1e-12)
