"""Ablation: switch off one idea of the method at a time, over seeds, and measure everything alike.

Each arm differs from a base in one thing. An arm with a seed is one run and one JSON file, so an interrupted
ablation goes on where it stopped, and `ssn.train.ablation_report` reads nothing but those files.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ssn.core.atomic import write_text_atomic
from ssn.core.calibrate import HealthyVolume, calibrate
from ssn.core.errors import DataError
from ssn.core.metrics import slice_scores
from ssn.core.volume import read_volume
from ssn.train.aggregation import SlicePool
from ssn.train.cases import Case
from ssn.train.checkpoint import RECORD_FILE, Detector
from ssn.train.distributed import ONE_PROCESS, Ranks
from ssn.train.evaluate import (
    Method,
    ScoredVolume,
    detector_log_likelihood,
    detector_method,
    lesion_mask,
    measure_volume,
    summarise,
    validation_threshold,
)
from ssn.train.features import FeatureReader
from ssn.train.fit import fit
from ssn.train.losses import LossKind
from ssn.train.network import ModelConfig
from ssn.train.presets import FitOptions

Question = Literal["loss", "encoder", "aggregation", "code", "anomalies"]
QUESTIONS: tuple[Question, ...] = get_args(Question)
Weights = Literal["imagenet", "none"] | Path

RECALL = 0.8  # at which false positives are counted
SIGMA, RATE = 4.0, 0.005  # of the map's Gaussian in mm, and of healthy voxels above its threshold; calibrate's own
PLANE_CHANNELS, DEPTH_CHANNELS = 128, 64


@dataclass(frozen=True)
class Arm:
    """One way to train. `question` is what it varies, `value` how; the base answers every question.

    Attributes
    ----------
    run : name of its files; the base's is the same under every question, so that it is trained once
    """

    question: Question
    value: str
    run: str
    config: ModelConfig
    options: FitOptions
    weights: Weights

    def settings(self, seed: int) -> dict[str, Any]:
        """Everything that decides its result, in plain values."""
        options = replace(self.options, seed=seed)
        weights = str(self.weights)
        if isinstance(self.weights, Path):  # the file's contents count, not where it lies
            weights = hashlib.sha256(self.weights.read_bytes()).hexdigest()
        plain = {"config": self.config.to_dict(), "options": asdict(options), "weights": weights}
        return json.loads(json.dumps(plain))  # tuples become lists, as they are when read back


def plan_arms(
    questions: Sequence[Question], config: ModelConfig, options: FitOptions, weights: Weights, tuned: Path | None = None
) -> list[Arm]:
    """List the arms of some questions about a base (`config`, `options`, `weights`).

    Parameters
    ----------
    tuned : weights of an encoder fine-tuned before, for the question "encoder"

    Raises
    ------
    DataError
        If the question "encoder" is asked and `tuned` is not given.
    """
    base = Arm("loss", options.loss, "base", config, options, weights)
    arms = []
    for question in questions:
        variants = _variants(question, base, tuned)
        same = [value for value, arm in variants.items() if _same(arm, base)]
        for value, arm in variants.items():
            run = "base" if value in same else f"{question}-{value}"
            arms.append(replace(arm, question=question, value=value, run=run))
    return arms


def _same(one: Arm, other: Arm) -> bool:
    return one.settings(0) == other.settings(0)


def _variants(question: Question, base: Arm, tuned: Path | None) -> dict[str, Arm]:
    config, options = base.config, base.options
    if question == "loss":
        return {kind: replace(base, options=_with_loss(options, kind)) for kind in get_args(LossKind)}
    if question == "encoder":
        if tuned is None:
            raise DataError("the question 'encoder' compares with a fine-tuned one; give --tuned FILE (finetune's)")
        if not tuned.is_file():
            raise DataError(f"{tuned}: no such encoder weights file")
        return {"imagenet": replace(base, weights="imagenet"), "tuned before": replace(base, weights=tuned)}
    if question == "aggregation":
        pools: dict[str, SlicePool] = {"mean": "mean", "max": "max", "attention": "attention"}
        single = replace(config.grid, window=1)
        arms = {name: replace(base, config=replace(config, pool=pool)) for name, pool in pools.items()}
        return arms | {"none": replace(base, config=replace(config, pool="mean", grid=single))}
    if question == "code":
        plane, depth = config.plane_channels or PLANE_CHANNELS, config.depth_channels or DEPTH_CHANNELS
        codes = {"none": (0, 0), "in-plane": (plane, 0), "in-plane + depth": (plane, depth)}
        return {
            name: replace(base, config=replace(config, plane_channels=p, depth_channels=d))
            for name, (p, d) in codes.items()
        }
    if options.loss not in ("spp", "hard"):
        raise DataError(f"loss {options.loss!r} cannot choose its anomalies; ask 'anomalies' with spp or hard")
    return {kind: replace(base, options=replace(options, anomalies=kind)) for kind in ("noise", "image")}


def _with_loss(options: FitOptions, kind: LossKind) -> FitOptions:
    # The triplet loss compares a feature with its own noised copy; it knows no other anomalies.
    return replace(options, loss=kind, anomalies="noise" if kind == "triplet" else options.anomalies)


@dataclass(frozen=True)
class AblationData:
    """The cases of each split."""

    train: list[Case]
    calibration: list[Case]
    validation: list[Case]
    test: list[Case]


def run_arm(
    arm: Arm,
    seed: int,
    data: AblationData,
    folder: Path,
    *,
    ranks: Ranks = ONE_PROCESS,
    progress: Callable[[str], None] = lambda doing: None,
) -> dict[str, Any]:
    """Train, calibrate and measure one arm with one seed, and write `runs/RUN-seedN.json`; a done one is kept.

    Features are cached in `folder`, and shared by all arms whose encoder and aggregation are the same.

    Raises
    ------
    DataError
        If the folder's result was made with other settings or volumes.
    """
    name = f"{arm.run}-seed{seed}".replace(" ", "_")
    path = folder / "runs" / f"{name}.json"
    made_of = arm.settings(seed) | {
        "volumes": {split: [case.name for case in cases] for split, cases in vars(data).items()}
    }
    if path.exists():
        try:
            result: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise DataError(f"{path}: is damaged ({error}); remove it to have this run made again") from error
        if result.get("made_of") != made_of:
            raise DataError(f"{path}: was made with other settings or volumes; use another output folder")
        return result
    checkpoint, cache = folder / "runs" / name, folder / "features"
    progress("training")
    detector = fit(
        arm.config,
        [case.image for case in data.train],
        checkpoint,
        replace(arm.options, seed=seed),
        cache=cache,
        weights=arm.weights,
        resume=(checkpoint / RECORD_FILE).exists(),
        ranks=ranks,
    )
    if ranks.rank == 0:
        progress("measuring")
        result = {"run": arm.run, "seed": seed, "made_of": made_of} | _measure(detector.to(ranks.device), data, cache)
        write_text_atomic(path, json.dumps(result, indent=1) + "\n")
        shutil.rmtree(checkpoint)
    ranks.wait()
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def _measure(detector: Detector, data: AblationData, cache: Path) -> dict[str, Any]:
    reader = FeatureReader(detector.network, cache)
    healthy = (read_volume(case.image) for case in data.calibration)
    volumes = (HealthyVolume.of(volume, *detector_log_likelihood(detector, volume, reader)) for volume in healthy)
    windows, cells = detector.config.grid.windows, detector.network.cells
    calibration = calibrate(volumes, windows=windows, cells=cells, sigma=SIGMA, rate=RATE)
    return measure_method(detector_method(detector, calibration, cache), data.validation, data.test)


def measure_method(method: Method, validation: Sequence[Case], test: Sequence[Case]) -> dict[str, Any]:
    """Measure accuracy, false positives at a fixed recall, and how slice and volume scores rank volumes."""
    threshold = validation_threshold(method, validation)
    rows, rates, highest_slices = [], [], []
    for case in test:
        scored = method(case.image)
        rows.append(measure_volume(scored, case, threshold))
        found = slice_scores(scored.score_map, scored.brain, axis=2)
        highest_slices.append(float(found[np.isfinite(found)].max()))
        if case.mask is not None:
            rates.append(false_positive_rate(scored, lesion_mask(case, scored), RECALL))
    return {
        "summary": summarise(rows),
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
    """Spearman's correlation of volume scores with each volume's highest slice score; None below 3 volumes."""
    from scipy.stats import spearmanr

    if len(volume_scores) < 3:
        return None
    value = float(spearmanr(volume_scores, highest_slices).statistic)
    return value if np.isfinite(value) else None
