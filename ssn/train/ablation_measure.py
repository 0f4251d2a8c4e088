"""What an ablation measures of one trained model: accuracy, false positives at a fixed recall, rank correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssn.core.calibrate import HealthyVolume, brain_statistics, calibrate, place_statistics
from ssn.core.look import Look
from ssn.core.scoring import Calibration, anomaly_map
from ssn.core.slice_metrics import slice_scores
from ssn.core.slices import SliceStack
from ssn.core.volume import Volume, read_volume
from ssn.train.ablation_data import AblationData
from ssn.train.arms import Arm
from ssn.train.cases import Case
from ssn.train.checkpoint import Detector
from ssn.train.evaluate import (
    Method,
    ScoredVolume,
    lesion_mask,
    measure_volume,
    summarise,
    validation_threshold,
)
from ssn.train.features import FeatureReader, stack_for
from ssn.train.likelihood import aligned_by_own, detector_log_likelihood

RECALL = 0.8  # at which false positives are counted
SIGMA, RATE = 4.0, 0.005  # of the map's Gaussian in mm, and of healthy voxels above its threshold; calibrate's own


class Looked:
    """Where volumes lie and which voxels are brain, for as long as the grid stays the same; voxels are not kept."""

    def __init__(self) -> None:
        self._grid: Any = None
        self._known: dict[Path, tuple[Volume, SliceStack]] = {}

    def at(self, path: Path, detector: Detector) -> tuple[Volume, SliceStack]:
        """Volume and stack of a file, both without their intensities."""
        config, cells = detector.config, detector.network.cells
        if self._grid != (config.grid, cells):
            self._grid, self._known = (config.grid, cells), {}
        if path not in self._known:
            volume = read_volume(path)
            stack = stack_for(detector.network, volume)
            nothing = np.zeros((0, 0, 0), np.float32)
            self._known[path] = replace(volume, data=nothing), replace(stack, slices=nothing)
        return self._known[path]


def measure_arm(arm: Arm, detector: Detector, data: AblationData, cache: Path | None, looked: Looked) -> dict[str, Any]:
    """Calibrate as the arm's scoring says, and measure."""
    reader = FeatureReader(detector.network, cache)
    whitening = detector.network.own_whitening() if detector.config.aligned else None
    known: Calibration | None = None

    def evidence(path: Path) -> tuple[Volume, SliceStack, NDArray[np.int64], NDArray[np.float32]]:
        found = reader.features(path)
        if whitening is not None and known is not None:
            found = aligned_by_own(detector, found, whitening, known)
        return *looked.at(path, detector), *detector_log_likelihood(detector, found, arm.options.precision)

    def healthy(path: Path) -> HealthyVolume:
        volume, stack, places, values = evidence(path)
        return HealthyVolume(Look.as_it_lies(stack), volume.zooms, volume.voxel_ml, places, values)

    def calibrated() -> Calibration:
        return calibrate(
            (healthy(case.image) for case in data.calibration),
            windows=detector.config.grid.windows,
            cells=detector.network.cells,
            sigma=SIGMA,
            rate=RATE,
            statistics=place_statistics if arm.scoring == "place" else brain_statistics,
        )

    calibration = calibrated()
    if whitening is not None:  # as `ssn.train.calibrate.calibrate_detector`
        known = calibration
        calibration = known = calibrated()

    def method(path: Path) -> ScoredVolume:
        volume, stack, places, values = evidence(path)
        score_map = anomaly_map(values, places, stack, calibration)
        if arm.scoring == "volume":
            low, high = score_map[stack.brain].min(), score_map[stack.brain].max()
            score_map = np.where(stack.brain, (score_map - low) / max(high - low, 1e-12), 0).astype(np.float32)
        return ScoredVolume.of(score_map, stack.brain, volume)

    return measure_method(method, data.validation, data.test)


def measure_method(method: Method, validation: Sequence[Case], test: Sequence[Case]) -> dict[str, Any]:
    """Measure accuracy, false positives at a fixed recall, and how slice and volume scores rank volumes."""
    threshold = validation_threshold(method, validation)
    rows, rates, highest_slices = [], [], []
    for case in test:
        scored = method(case.image)
        rows.append(measure_volume(scored, case, threshold))
        found = slice_scores(scored.score_map, scored.brain)
        highest_slices.append(float(found[np.isfinite(found)].max()))
        if case.mask is not None:
            rates.append(false_positive_rate(scored, lesion_mask(case, scored), RECALL))
    return {
        "summary": summarise(rows),
        "lesions": sorted({case.lesion for case in test if case.mask is not None}),
        "false_positive_rate_at_recall": float(np.mean(rates)) if rates else None,
        "slice_volume_rank_correlation": rank_correlation([row.score for row in rows], highest_slices),
    }


def false_positive_rate(scored: ScoredVolume, mask: NDArray[np.bool_], recall: float) -> float:
    """Share of a volume's healthy brain voxels that score as high as the level that `recall` of its lesion reaches.

    A point on the ROC curve, found with the labels: it compares methods, and is no threshold to use.
    """
    lesion = scored.score_map[mask & scored.brain]
    level = np.sort(lesion)[lesion.size - math.ceil(recall * lesion.size)]
    return float((scored.score_map[scored.brain & ~mask] >= level).mean())


def rank_correlation(volume_scores: Sequence[float], highest_slices: Sequence[float]) -> float | None:
    """Spearman's correlation of volume scores with each volume's highest slice score; None where it is undefined."""
    from scipy.stats import spearmanr

    if len(volume_scores) < 3 or min(len(set(volume_scores)), len(set(highest_slices))) == 1:
        return None
    return float(spearmanr(volume_scores, highest_slices).statistic)
