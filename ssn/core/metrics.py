"""Accuracy metrics of anomaly maps: AUROC, AUPRC, Dice, per-region overlap (METHOD.md, "Scoring").

All take higher scores as more anomalous. The ranking metrics look only at the voxels in `within` (the
brain): background is an easy true negative and would flatter every one of them. A metric is of one volume;
the mean over volumes is the caller's. Where it is undefined it raises ValueError, so that no NaN enters a
mean unseen.

scipy's labelling is imported where it is needed, so that the other metrics need numpy alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Lesion-score quantiles a volume from which the candidate thresholds are taken.
_QUANTILES_A_VOLUME = 101
PRO_LIMIT = 0.3  # false positive rate up to which PRO is integrated


class _Voxels(NamedTuple):
    """Scores (N,) and lesion labels (N,), bool, of the voxels in the brain."""

    scores: Array
    labels: NDArray[np.bool_]


class VoxelAccuracy(NamedTuple):
    """The ranking metrics of one volume."""

    auroc: float
    auprc: float
    pro: float


class _Ranking(NamedTuple):
    """Voxels in the brain from the highest score on; at each of T distinct scores, how many are at or above it.

    Attributes
    ----------
    descending : (N,) int64, order of the voxels
    last_of_ties : (T,) int64, where in that order each distinct score ends
    true_positives, false_positives : (T,) int64
    """

    descending: NDArray[np.int64]
    last_of_ties: NDArray[np.int64]
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]


def _rank(voxels: _Voxels) -> _Ranking:
    descending = np.argsort(voxels.scores)[::-1]
    ordered = voxels.scores[descending]
    last_of_ties = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), ordered.size - 1)
    true_positives = np.cumsum(voxels.labels[descending], dtype=np.int64)[last_of_ties]
    return _Ranking(descending, last_of_ties, true_positives, last_of_ties + 1 - true_positives)


def voxel_accuracy(score: Array, mask: Array, within: Array) -> VoxelAccuracy:
    """Compute AUROC, AUPRC and PRO of one volume, which is sorted once for all three.

    Parameters and errors as in `voxel_auroc`.
    """
    voxels = _voxels(score, mask, within)
    ranking = _rank(voxels)
    overlap = _mean_overlap(ranking, mask, within)
    return VoxelAccuracy(_auroc(ranking), _auprc(ranking), _pro(ranking, overlap))


def voxel_auroc(score: Array, mask: Array, within: Array) -> float:
    """Area under the ROC curve over the voxels of one volume: the share of pairs in right order, ties half.

    Parameters
    ----------
    score : (D, H, W) or any one shape, higher is more anomalous.
    mask : same shape, lesion where not 0.
    within : same shape, bool, the voxels that count.

    Raises
    ------
    ValueError
        If `within` holds no lesion voxel, or nothing else, or a score that is not finite.
    """
    return _auroc(_rank(_voxels(score, mask, within)))


def _auroc(ranking: _Ranking) -> float:
    true, false = (np.append(0, counts) / counts[-1] for counts in (ranking.true_positives, ranking.false_positives))
    return float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))


def voxel_auprc(score: Array, mask: Array, within: Array) -> float:
    """Area under the precision-recall curve as average precision: the sum of recall gained times precision there.

    Parameters and errors as in `voxel_auroc`.
    """
    return _auprc(_rank(_voxels(score, mask, within)))


def _auprc(ranking: _Ranking) -> float:
    found = ranking.true_positives
    precision = found / (found + ranking.false_positives)
    return float(np.sum(np.diff(np.append(0, found)) * precision) / found[-1])


def dice(prediction: Array, mask: Array) -> float:
    """Dice coefficient 2 |P and M| / (|P| + |M|) (Dice 1945).

    Parameters
    ----------
    prediction, mask : one shape, true where not 0.

    Raises
    ------
    ValueError
        If both are empty, where the coefficient is 0 / 0.
    """
    predicted, lesion = np.asarray(prediction).astype(bool), np.asarray(mask).astype(bool)
    check_shapes(prediction=predicted, mask=lesion)
    size = np.count_nonzero(predicted) + np.count_nonzero(lesion)
    if size == 0:
        raise ValueError("Dice is undefined: neither the prediction nor the mask has a voxel")
    return 2 * np.count_nonzero(predicted & lesion) / size


def best_dice_threshold(scores: Sequence[Array], masks: Sequence[Array]) -> float:
    """Threshold t at which the mean Dice of `score >= t` over VALIDATION volumes is highest; the lowest of several.

    For validation volumes only: a threshold that is then reported on the same volumes is fitted to their
    labels. Percentiles of each volume's lesion scores are tried: as t rises from one lesion score to the next only
    false positives are lost, so the best t is always a lesion score.

    Parameters
    ----------
    scores, masks : one array a volume, of any shape, both already restricted to the brain.

    Raises
    ------
    ValueError
        If there are no volumes, or a volume has no lesion voxel or a score that is not finite.
    """
    if len(scores) == 0 or len(scores) != len(masks):
        raise ValueError(f"expected one mask a volume and at least one, got {len(scores)} and {len(masks)}")
    volumes = [_lesion_voxels(index, *pair) for index, pair in enumerate(zip(scores, masks, strict=True))]
    levels = np.linspace(0, 1, _QUANTILES_A_VOLUME)
    lesion_levels = [np.quantile(v.scores[v.labels], levels, method="inverted_cdf") for v in volumes]
    thresholds = np.unique(np.concatenate(lesion_levels))
    total = np.zeros(thresholds.shape)
    for voxels in volumes:
        lesion = voxels.scores[voxels.labels]
        predicted = _count_at_least(voxels.scores, thresholds)
        total += 2 * _count_at_least(lesion, thresholds) / (predicted + lesion.size)
    return float(thresholds[np.argmax(total)])


def _mean_overlap(ranking: _Ranking, mask: Array, within: Array) -> NDArray[np.float64]:
    """Share of a region that is found at each distinct score, mean over regions: (T,).

    A region is a 26-connected component of the whole mask; what of it lies outside `within` is not counted, and a
    region wholly outside is left out.
    """
    from scipy.ndimage import label

    lesion = np.asarray(mask).astype(bool)
    regions = label(lesion, structure=np.ones((3,) * lesion.ndim))[0][np.asarray(within).astype(bool)]
    sizes = np.bincount(regions)
    sizes[0] = 0
    # A voxel of region r is worth 1 / (number of regions * size of r): the mean overlap becomes a plain sum.
    worth = 1 / (np.count_nonzero(sizes) * np.maximum(sizes, 1))
    worth[0] = 0
    return np.cumsum(worth[regions[ranking.descending]])[ranking.last_of_ties]


def _pro(ranking: _Ranking, overlap: NDArray[np.float64]) -> float:
    """Per-region overlap: how well each lesion is covered, large or small, up to a false positive rate.

    Bergmann et al., *Uninformed Students* (CVPR 2020), and *The MVTec Anomaly Detection Dataset* (IJCV 2021).
    The mean over the lesions of the share of the lesion with `score >= t`, as a function of the share of
    non-lesion voxels with `score >= t`, from (0, 0) on; integrated by trapezoids up to `PRO_LIMIT` (interpolated
    there) and divided by it. 1 is perfect, a constant score has `PRO_LIMIT / 2`.
    """
    overlap = np.append(0.0, overlap)
    rate = np.append(0.0, ranking.false_positives / ranking.false_positives[-1])

    # Points up to the limit, and the one where the next segment crosses it.
    inside = int(np.searchsorted(rate, PRO_LIMIT, side="right"))
    x, y = rate[:inside], overlap[:inside]
    along = (PRO_LIMIT - x[-1]) / (rate[inside] - x[-1])
    x, y = np.append(x, PRO_LIMIT), np.append(y, y[-1] + along * (overlap[inside] - y[-1]))
    area = np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)
    return float(area / PRO_LIMIT)


def _voxels(score: Array, mask: Array, within: Array) -> _Voxels:
    """Pick the voxels in `within` and check that a ranking metric is defined on them."""
    score, lesion, inside = np.asarray(score), np.asarray(mask).astype(bool), np.asarray(within).astype(bool)
    check_shapes(score=score, mask=lesion, within=inside)
    voxels = _Voxels(score[inside], lesion[inside])
    _check_finite(voxels.scores)
    if not voxels.labels.any():
        raise ValueError("the metric is undefined: nothing within the brain is labelled as lesion")
    if voxels.labels.all():
        raise ValueError("the metric is undefined: everything within the brain is labelled as lesion")
    return voxels


def _lesion_voxels(index: int, score: Array, mask: Array) -> _Voxels:
    """Flatten one volume of `best_dice_threshold` and check that its Dice has a best threshold."""
    score, lesion = np.asarray(score), np.asarray(mask).astype(bool)
    check_shapes(score=score, mask=lesion)
    voxels = _Voxels(score.ravel(), lesion.ravel())
    _check_finite(voxels.scores)
    if not voxels.labels.any():
        raise ValueError(f"volume {index} has no lesion voxel, so its Dice says nothing of a threshold: leave it out")
    return voxels


def _count_at_least(values: Array, thresholds: Array) -> Array:
    """Count the values >= each of the thresholds: (T,) from (N,) and (T,)."""
    return values.size - np.searchsorted(np.sort(values), thresholds, side="left")


def check_shapes(**arrays: Array) -> None:
    """Raise ValueError unless all arrays have one shape."""
    if len({array.shape for array in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"the arrays must have one shape, got {shapes}")


def _check_finite(scores: Array) -> None:
    if not np.isfinite(scores).all():
        raise ValueError("a score within the brain is NaN or infinite")
