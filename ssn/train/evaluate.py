"""Accuracy of anomaly maps against lesion masks: per voxel, slice, region and volume (METHOD.md, Scoring).

Every method goes through the same code: it is a function from a volume's path to a `ScoredVolume`. The Dice
threshold is the best on validation volumes, applied to the test volumes; metrics see brain voxels only, and a
test set has healthy volumes in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssn.core import metrics, slice_metrics
from ssn.core.calibrate import HealthyVolume
from ssn.core.errors import DataError
from ssn.core.look import Look, look_at
from ssn.core.scoring import Calibration, volume_score
from ssn.core.volume import Volume, read_volume
from ssn.train.cases import LESION_SIZES, Case
from ssn.train.checkpoint import Detector
from ssn.train.features import FeatureReader, stack_for
from ssn.train.likelihood import aligned_by_own, detector_log_likelihood
from ssn.train.masks import read_mask, unusable_mask


@dataclass(frozen=True)
class ScoredVolume:
    """A method's answer: map and brain (X, Y, Z) in canonical axis order, one score for the volume, ml a voxel."""

    score_map: NDArray[np.float32]
    brain: NDArray[np.bool_]
    score: float
    voxel_ml: float

    @classmethod
    def of(cls, score_map: NDArray[np.float32], brain: NDArray[np.bool_], volume: Volume) -> ScoredVolume:
        """Score a volume by its map."""
        return cls(score_map, brain, volume_score(score_map, brain, volume.voxel_ml), volume.voxel_ml)


Method = Callable[[Path], ScoredVolume]
METRICS = ("auroc", "auprc", "dice", "pro", "slice_auroc", "slice_auprc")


@dataclass(frozen=True)
class VolumeAccuracy:
    """Metrics of one volume; those of lesions are None where there is none."""

    image: str
    lesion: str
    volume_ml: float
    score: float
    auroc: float | None
    auprc: float | None
    dice: float | None
    pro: float | None
    slice_auroc: float | None
    slice_auprc: float | None
    false_positive_ml: float


def healthy_volume(detector: Detector, volume: Volume, reader: FeatureReader) -> HealthyVolume:
    """Ask a detector about a healthy volume that it is to be calibrated on; `reader` is of its network."""
    stack = stack_for(detector.network, volume)
    found = detector_log_likelihood(detector, reader.features(volume.path, stack))
    return HealthyVolume.of(volume, Look.as_it_lies(stack), *found)


class DetectorMethod:
    """A detector as a method; see `ssn.train.trained.TrainedMethod`."""

    def __init__(
        self, detector: Detector, calibration: Calibration, cache: Path | None = None, *, align: bool = False
    ) -> None:
        self.threshold = calibration.threshold
        self._detector, self._calibration = detector, calibration
        self._reader = FeatureReader(detector.network, cache)
        self._whitening = detector.network.own_whitening() if align else None

    def __call__(self, path: Path) -> ScoredVolume:
        """Score a volume."""
        volume = read_volume(path)
        look = look_at(volume, partial(stack_for, self._detector.network), self._calibration)
        found = self._reader.features(path, look.stack, keep=look.turn is None)
        if self._whitening is not None:
            found = aligned_by_own(self._detector, found, self._whitening, self._calibration)
        places, values = detector_log_likelihood(self._detector, found)
        score_map = look.score_map(values, places, self._calibration)
        return ScoredVolume.of(score_map, look.read.brain, volume)


def _slice_metrics(scored: ScoredVolume, mask: NDArray[np.bool_]) -> tuple[float | None, float | None]:
    scores = slice_metrics.slice_scores(scored.score_map, scored.brain)
    labels: NDArray[np.bool_] = np.asarray((mask & scored.brain).any((0, 1)))
    scored_labels = labels[np.isfinite(scores)]
    if scored_labels.all() or not scored_labels.any():
        return None, None
    return slice_metrics.slice_auroc(scores, labels), slice_metrics.slice_auprc(scores, labels)


def lesion_mask(case: Case, scored: ScoredVolume) -> NDArray[np.bool_]:
    """Read the mask (X, Y, Z) of a case that has one.

    Raises
    ------
    DataError
        If it is not on its image's grid, or marks nothing inside the brain, or all of it.
    """
    assert case.mask is not None
    mask = read_mask(case.mask, scored.brain.shape)
    if wrong := unusable_mask(case.mask, mask[scored.brain]):
        raise DataError(wrong)
    return mask


def measure_volume(scored: ScoredVolume, case: Case, threshold: float) -> VolumeAccuracy:
    """Metrics of one volume at a threshold."""
    predicted = (scored.score_map > threshold) & scored.brain
    if case.mask is None:
        empty = (None,) * 6
        return VolumeAccuracy(case.name, "", 0.0, scored.score, *empty, float(predicted.sum()) * scored.voxel_ml)
    mask = lesion_mask(case, scored)
    inside = mask & scored.brain
    voxels = metrics.voxel_accuracy(scored.score_map, mask, scored.brain)
    return VolumeAccuracy(
        case.name,
        case.lesion,
        float(mask.sum()) * scored.voxel_ml if case.volume_ml is None else case.volume_ml,
        scored.score,
        voxels.auroc,
        voxels.auprc,
        metrics.dice(predicted, inside),
        voxels.pro,
        *_slice_metrics(scored, mask),
        float((predicted & ~mask).sum()) * scored.voxel_ml,
    )


def lesioned_voxels(
    method: Method, cases: Sequence[Case], progress: Callable[[], None] = lambda: None
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.bool_]]]:
    """Map values and labels of the brain voxels, both (n,), of each validation volume that has a lesion."""
    scores, masks = [], []
    for case in cases:
        if case.mask is not None:
            scored = method(case.image)
            scores.append(scored.score_map[scored.brain])
            masks.append(lesion_mask(case, scored)[scored.brain])
        progress()
    if not scores:
        raise DataError("no validation volume has a lesion, so no Dice threshold can be chosen")
    return scores, masks


def validation_threshold(method: Method, cases: Sequence[Case], progress: Callable[[], None] = lambda: None) -> float:
    """Threshold with the best mean Dice over the validation volumes that have a lesion."""
    return mask_threshold(*lesioned_voxels(method, cases, progress))


def mask_threshold(scores: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]) -> float:
    """Return what gives the best mean Dice if the mask is where the map is above it: just below a score."""
    best = np.float32(metrics.best_dice_threshold(scores, masks))
    return float(np.nextafter(best, np.float32(-np.inf)))


def evaluate(
    method: Method, test: Sequence[Case], threshold: float, progress: Callable[[], None] = lambda: None
) -> list[VolumeAccuracy]:
    """Metrics of every test volume; `progress` is called once a volume."""
    rows = []
    for case in test:
        rows.append(measure_volume(method(case.image), case, threshold))
        progress()
    return rows


def _mean(rows: Sequence[VolumeAccuracy], name: str) -> float | None:
    values = [getattr(row, name) for row in rows if getattr(row, name) is not None]
    return round(float(np.mean(values)), 4) if values else None


def summarise(
    rows: Sequence[VolumeAccuracy],
    names: Sequence[str] = METRICS,
    healthy_names: Sequence[str] = ("false_positive_ml",),
) -> dict[str, Any]:
    """Means over volumes: of all lesions, by kind, by size; and lesioned against healthy volumes.

    Parameters
    ----------
    names, healthy_names : what of the rows is averaged, of lesioned volumes and of healthy ones
    """
    lesioned = [row for row in rows if row.lesion]
    healthy = [row for row in rows if not row.lesion]
    groups = {
        "all": lesioned,
        **{
            name: [row for row in lesioned if least <= row.volume_ml < most]
            for name, (least, most) in LESION_SIZES.items()
        },
    }
    groups |= {kind: [row for row in lesioned if row.lesion == kind] for kind in sorted({r.lesion for r in lesioned})}
    summary: dict[str, Any] = {
        label: {"volumes": len(group)} | {name: _mean(group, name) for name in names}
        for label, group in groups.items()
        if group
    }
    summary["healthy"] = {"volumes": len(healthy)} | {name: _mean(healthy, name) for name in healthy_names}
    if healthy and lesioned:
        summary["volume_auroc"] = score_auroc(*([row.score for row in group] for group in (lesioned, healthy)))
    return summary


def score_auroc(higher: Sequence[float], lower: Sequence[float]) -> float | None:
    """AUROC of two groups of volume scores; None where one is empty."""
    from sklearn.metrics import roc_auc_score

    if not higher or not lower:
        return None
    return round(float(roc_auc_score([1] * len(higher) + [0] * len(lower), [*higher, *lower])), 4)


def as_json(
    rows: Sequence[VolumeAccuracy], threshold: float, origin: Literal["validation", "healthy"]
) -> dict[str, Any]:
    """Everything that was measured, for a file; `origin` are the volumes that the threshold is from."""
    volumes = [asdict(row) for row in rows]
    return {"threshold": threshold, "threshold_from": origin, "summary": summarise(rows), "volumes": volumes}


def print_table(title: str, summary: dict[str, Any]) -> None:
    """Print a summary as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    titles = ("volumes", "AUROC", "AUPRC", "Dice", "PRO", "slice\nAUROC", "slice\nAUPRC")
    table = Table("lesions", *titles, title=escape(title))
    for label, values in summary.items():
        if isinstance(values, dict) and "auroc" in values:
            cells = ["-" if values[name] is None else f"{values[name]:.3f}" for name in METRICS]
            table.add_row(escape(label), str(values["volumes"]), *cells)
    console = Console()
    if table.row_count:
        console.print(table)
    healthy = summary["healthy"]
    if healthy["volumes"]:
        wrong = (
            f"{healthy['false_positive_ml']:.1f} ml above the threshold in each of {healthy['volumes']} healthy volumes"
        )
        told = f"AUROC of volume scores {summary['volume_auroc']:.3f}" if table.row_count else "no volume has a lesion"
        console.print(f"{wrong}; {told}")
