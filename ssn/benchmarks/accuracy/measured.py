"""What one method's maps are worth: ranking metrics, Dice at three thresholds, and a control for the scanner.

The three thresholds answer three questions and never share a column. *healthy*: a quantile of the method's map over
held-out healthy volumes, all that a user without lesions can have. *validation*: the best mean Dice on validation
lesions. *oracle*: the best on the test volumes themselves, which nobody has; it bounds what a threshold could do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssn.benchmarks.measure import Tell
from ssn.core.errors import DataError
from ssn.train.cases import Case
from ssn.train.evaluate import (
    METRICS,
    Method,
    ScoredVolume,
    VolumeAccuracy,
    lesion_mask,
    lesioned_voxels,
    mask_threshold,
    measure_volume,
    score_auroc,
    summarise,
)
from ssn.train.trained import TrainedMethod

HEALTHY_QUANTILE = 0.995  # of healthy brain voxels; the others are above the threshold
_EVERY = 7  # brain voxels of which one stands for the others in that quantile, so that memory stays small
_LEVELS = 1001

COLUMNS = (*METRICS, "dice_healthy", "dice_oracle")
HEALTHY_COLUMNS = ("false_positive_ml", "false_positive_ml_healthy")


@dataclass(frozen=True)
class Splits:
    """Volumes that every method is measured on.

    Attributes
    ----------
    calibration : healthy, for the healthy-only threshold
    validation : with lesions, for the Dice threshold
    controls : healthy volumes of other sources or contrasts, by name
    """

    calibration: Sequence[Case]
    validation: Sequence[Case]
    test: Sequence[Case]
    controls: Mapping[str, Sequence[Case]]


@dataclass(frozen=True)
class TestedVolume(VolumeAccuracy):
    """Metrics of one volume; `dice` and `false_positive_ml` are at the validation threshold."""

    dice_healthy: float | None
    dice_oracle: float | None
    false_positive_ml_healthy: float


@dataclass(frozen=True)
class Thresholds:
    """Values of a method's map; `healthy_median` is that of healthy brain voxels."""

    healthy_median: float
    healthy: float
    validation: float
    oracle: float


@dataclass(frozen=True)
class Pooled:
    """Brain voxels of all lesioned test volumes above each candidate threshold.

    Attributes
    ----------
    thresholds : (t,) float32, ascending
    lesion, other : (t + 1,) voxels, first all of them, then those above each threshold
    """

    thresholds: NDArray[np.float32]
    lesion: NDArray[np.float64]
    other: NDArray[np.float64]

    def roc(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the false and the true positive rate, from (0, 0) to (1, 1)."""
        x, y = (np.append(0.0, count[::-1] / count[0]) for count in (self.other, self.lesion))
        return x, y

    def precision_recall(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Recall, ascending, and precision, where any voxel is above the threshold."""
        above = (self.lesion + self.other)[::-1]
        some = above > 0
        return (self.lesion[::-1] / self.lesion[0])[some], self.lesion[::-1][some] / above[some]

    def auroc(self) -> float:
        """Area under the ROC curve, by trapezoids."""
        x, y = self.roc()
        return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))

    def auprc(self) -> float:
        """Average precision."""
        recall, precision = self.precision_recall()
        return float(np.sum(np.diff(recall, prepend=0.0) * precision))


@dataclass(frozen=True)
class MethodAccuracy:
    """Everything that was measured of one method.

    Attributes
    ----------
    controls : of each control, volumes, AUROC of scores against healthy and lesioned test volumes, false positives
    slices : map (X, Y) of the volumes to be shown, by case name
    """

    thresholds: Thresholds
    rows: Sequence[TestedVolume]
    controls: Mapping[str, Mapping[str, float | int | None]]
    pooled: Pooled
    slices: Mapping[str, NDArray[np.float32]]

    def as_json(self) -> dict[str, Any]:
        """Plain values; `threshold` and `summary` are what `ssn-train evaluate` writes too."""
        return {
            "threshold": self.thresholds.validation,
            "thresholds": asdict(self.thresholds),
            "summary": summarise(self.rows, COLUMNS, HEALTHY_COLUMNS),
            "pooled": {"auroc": round(self.pooled.auroc(), 4), "auprc": round(self.pooled.auprc(), 4)},
            "controls": dict(self.controls),
            "volumes": [asdict(row) for row in self.rows],
        }


def healthy_sample(method: Method, cases: Sequence[Case], step: Callable[[], None]) -> NDArray[np.float32]:
    """Map values (n,) of every `_EVERY`th brain voxel of healthy volumes.

    Raises
    ------
    DataError
        If one has a mask.
    """
    values = []
    for case in cases:
        if case.mask is not None:
            raise DataError(f"{case.name}: has a mask, and the healthy-only threshold must not see a lesion")
        scored = method(case.image)
        values.append(scored.score_map[scored.brain][::_EVERY])
        step()
    return np.concatenate(values)


def candidate_thresholds(
    healthy: NDArray[np.float32], lesion: NDArray[np.float32], chosen: Sequence[float]
) -> NDArray[np.float32]:
    """Thresholds (t,), ascending, at which test volumes are counted: none of them has seen a test volume.

    Quantiles of healthy values, dense in the tail, and of lesion values; equal steps beyond the highest of both, for
    test volumes that go higher; and the thresholds that were chosen.
    """
    levels = np.linspace(0, 1, _LEVELS)
    tail = 1 - np.geomspace(1, 1e-6, _LEVELS)
    top = float(max(healthy.max(), lesion.max()))
    reach = top - float(np.median(healthy))
    beyond = np.linspace(top, top + 3 * reach, _LEVELS)
    parts = (np.quantile(healthy, levels), np.quantile(healthy, tail), np.quantile(lesion, levels), beyond, chosen)
    return np.unique(np.concatenate([np.asarray(part, np.float32) for part in parts]))


def voxels_above(
    scored: ScoredVolume, mask: NDArray[np.bool_], thresholds: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count the lesion voxels and the others, both (t + 1,): all in the brain, then those above each threshold."""
    values, labels = scored.score_map[scored.brain], mask[scored.brain]
    # The number of thresholds below a value: the value is above the first so many.
    bins = np.searchsorted(thresholds, values, side="left")
    size = thresholds.size + 1
    lesion, other = (np.bincount(bins[chosen], minlength=size) for chosen in (labels, ~labels))
    return lesion[::-1].cumsum()[::-1].astype(float), other[::-1].cumsum()[::-1].astype(float)


def control_accuracy(
    scores: Sequence[float], wrong_ml: Sequence[float], rows: Sequence[VolumeAccuracy]
) -> dict[str, float | int | None]:
    """Compare healthy control volumes with the test volumes by their scores.

    `auroc_against_healthy` should be 0.5: far from it on either side, the method measures the source, not the
    brain. `auroc_of_lesions` is that of lesioned test volumes against the control.

    Parameters
    ----------
    scores, wrong_ml : a control volume's score, and its millilitres above the healthy-only threshold
    """
    healthy = [row.score for row in rows if not row.lesion]
    lesioned = [row.score for row in rows if row.lesion]
    return {
        "volumes": len(scores),
        "auroc_against_healthy": score_auroc(scores, healthy),
        "auroc_of_lesions": score_auroc(lesioned, scores),
        "false_positive_ml_healthy": round(float(np.mean(wrong_ml)), 4),
    }


def _wrong_ml(scored: ScoredVolume, threshold: float, mask: NDArray[np.bool_] | None = None) -> float:
    predicted = (scored.score_map > threshold) & scored.brain
    return float((predicted if mask is None else predicted & ~mask).sum()) * scored.voxel_ml


def measure(name: str, method: Method, splits: Splits, shown: Mapping[str, int], tell: Tell) -> MethodAccuracy:
    """Measure one method on all splits; each volume is scored once.

    Parameters
    ----------
    shown : axial slice to keep, by case name
    tell : told of progress

    Raises
    ------
    DataError
        If no test or validation volume has a lesion, or a calibration volume has one.
    """

    def counting(what: str, cases: Sequence[Case]) -> Callable[[], None]:
        done = iter(range(1, len(cases) + 1))
        return lambda: tell(f"{name}: {what}", next(done), len(cases))

    sample = healthy_sample(method, splits.calibration, counting("healthy threshold", splits.calibration))
    # A trained model compares with these very volumes, so their maps are lower than a new one's; not its own threshold.
    own = method.threshold if isinstance(method, TrainedMethod) else None
    at_healthy = float(np.quantile(sample, HEALTHY_QUANTILE)) if own is None else own
    scores, masks = lesioned_voxels(method, splits.validation, counting("validation", splits.validation))
    at_validation = mask_threshold(scores, masks)
    lesion_values = np.concatenate([values[labels] for values, labels in zip(scores, masks, strict=True)])
    thresholds = candidate_thresholds(sample, lesion_values, (at_healthy, at_validation))
    median = float(np.median(sample))
    del scores, masks, sample

    rows: list[TestedVolume] = []
    curves: dict[int, NDArray[np.float64]] = {}  # Dice at each candidate, by row
    pooled_lesion, pooled_other = np.zeros((2, thresholds.size + 1))
    slices: dict[str, NDArray[np.float32]] = {}
    step = counting("test", splits.test)
    for case in splits.test:
        scored = method(case.image)
        row = measure_volume(scored, case, at_validation)
        mask = None if case.mask is None else lesion_mask(case, scored)
        dice = None
        if mask is not None:
            lesion, other = voxels_above(scored, mask, thresholds)
            pooled_lesion, pooled_other = pooled_lesion + lesion, pooled_other + other
            curves[len(rows)] = 2 * lesion[1:] / (lesion[1:] + other[1:] + lesion[0])
            dice = float(curves[len(rows)][np.searchsorted(thresholds, np.float32(at_healthy))])
        rows.append(TestedVolume(**asdict(row), dice_healthy=dice, dice_oracle=None,
                                 false_positive_ml_healthy=_wrong_ml(scored, at_healthy, mask)))  # fmt: skip
        if case.name in shown:
            slices[case.name] = scored.score_map[:, :, shown[case.name]].copy()
        step()
    if not curves:
        raise DataError("no test volume has a lesion, so there is nothing to find")
    best = int(np.argmax(np.mean(list(curves.values()), axis=0)))
    for index, curve in curves.items():
        rows[index] = replace(rows[index], dice_oracle=float(curve[best]))

    controls = {}
    for control, cases in splits.controls.items():
        found = []
        step = counting(control, cases)
        for case in cases:
            scored = method(case.image)
            found.append((scored.score, _wrong_ml(scored, at_healthy)))
            step()
        control_scores, wrong = zip(*found, strict=True)
        controls[control] = control_accuracy(control_scores, wrong, rows)
    return MethodAccuracy(
        Thresholds(median, at_healthy, at_validation, float(thresholds[best])),
        rows,
        controls,
        Pooled(thresholds, pooled_lesion, pooled_other),
        slices,
    )
