"""Ablation: switch off one idea of the method at a time, over seeds, and measure everything alike.

An arm with a seed is one run and one JSON file, so an interrupted ablation goes on where it stopped, several processes
share the work, and `ssn.train.ablation_report` reads nothing but those files.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ssn.core.atomic import write_json_atomic
from ssn.core.errors import DataError
from ssn.core.outputs import check_folder
from ssn.train.ablation_data import AblationData
from ssn.train.ablation_measure import Looked, measure_arm
from ssn.train.arms import Arm
from ssn.train.cases import case_contents
from ssn.train.checkpoint import OPTIMISER_FILE, RECORD_FILE, Detector
from ssn.train.distributed import ONE_PROCESS, Ranks
from ssn.train.features import FeatureReader
from ssn.train.fit import fit
from ssn.train.network import FeatureNetwork


def run_arms(
    arms: Sequence[Arm],
    seeds: int,
    data: AblationData,
    folder: Path,
    *,
    reuse: Path | None = None,
    ranks: Ranks = ONE_PROCESS,
    progress: Callable[[str], None] = lambda doing: None,
    on_run: Callable[[], None] = lambda: None,
) -> dict[str, list[dict[str, Any]]]:
    """Run every arm with seeds 0 to `seeds` - 1; return the results by `Arm.run`, a seed each.

    Processes that are started with the same arguments share the runs: each takes those that no other has taken,
    and waits for the others' at the end.

    Parameters
    ----------
    reuse : folder of another ablation, whose models and features are used and added to
    progress : called with what is done now
    on_run : called once a run

    Raises
    ------
    DataError
        If the folder's result was made with other settings or volumes, or an encoder is to be trained by processes
        that share each step (torchrun).
    OutputError
        If a folder cannot be written to, said before any computing.
    """
    if ranks.count > 1 and any(arm.options.tune_encoder for arm in arms):
        raise DataError("the arm 'tuned during' is trained by one process; ask 'encoder' without torchrun")
    for place in (folder, reuse or folder):
        check_folder(place)
    runs = [(arm, seed) for arm in {arm.run: arm for arm in arms}.values() for seed in range(seeds)]
    results: dict[tuple[str, int], dict[str, Any]] = {}
    looked = Looked()
    for patience in (0.0, -1.0):  # first what is free, then what another process has taken
        for arm, seed in runs:
            if (arm.run, seed) in results:
                continue
            try:
                with _claim(folder, arm, seed, patience, ranks):
                    results[arm.run, seed] = run_arm(
                        arm, seed, data, folder, reuse=reuse, ranks=ranks, looked=looked,
                        progress=lambda doing, name=f"{arm.run} seed {seed}": progress(f"{name}: {doing}"),  # type: ignore[misc]
                    )  # fmt: skip
            except Timeout:
                continue
            on_run()
    return {arm.run: [results[arm.run, seed] for seed in range(seeds)] for arm in arms}


def _name(arm: Arm, seed: int) -> str:
    return f"{arm.run}-seed{seed}".replace(" ", "_")


def _claim(folder: Path, arm: Arm, seed: int, patience: float, ranks: Ranks) -> AbstractContextManager[Any]:
    """Hold a run for this process; the claim of a process that dies is gone with it."""
    if ranks.count > 1:  # these work on one run together
        return nullcontext()
    claims = folder / "runs" / "claims"
    claims.mkdir(parents=True, exist_ok=True)
    return FileLock(claims / f"{_name(arm, seed)}.lock", timeout=patience)


def run_arm(
    arm: Arm,
    seed: int,
    data: AblationData,
    folder: Path,
    *,
    reuse: Path | None = None,
    ranks: Ranks = ONE_PROCESS,
    looked: Looked | None = None,
    progress: Callable[[str], None] = lambda doing: None,
) -> dict[str, Any]:
    """Train, calibrate and measure one arm with one seed, and write `runs/RUN-seedN.json`; a done one is kept.

    Models are kept in `models`, one for all arms that differ only in how they score; features in `features`, shared by
    all arms whose encoder and aggregation are the same.

    Raises
    ------
    DataError
        If the folder's result was made with other settings or volumes.
    """
    path = folder / "runs" / f"{_name(arm, seed)}.json"
    made_of = arm.settings(seed) | {"volumes": {split: case_contents(cases) for split, cases in vars(data).items()}}
    if path.exists():
        try:
            result: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise DataError(f"{path}: is damaged ({error}); remove it to have this run made again") from error
        if result.get("made_of") != made_of:
            raise DataError(f"{path}: was made with other settings or volumes; use another output folder")
        return result
    shared = reuse or folder
    progress("training")
    detector = _trained(arm, seed, data, shared, ranks)
    if ranks.rank == 0:
        progress("measuring")
        # No other run has the features of an encoder tuned in this one: they are not worth the disk.
        cache = None if arm.options.tune_encoder else shared / "features"
        values = measure_arm(arm, detector.to(ranks.device), data, cache, looked or Looked())
        result = {"run": arm.run, "seed": seed, "made_of": made_of} | values
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, result)
    ranks.wait()
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def _trained(arm: Arm, seed: int, data: AblationData, shared: Path, ranks: Ranks) -> Detector:
    """Train the arm's model, or take the one that is there."""
    made_of = arm.training(seed) | {"train": case_contents(data.train)}
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    checkpoint, cache = shared / "models" / digest[:16], shared / "features"
    images = [case.image for case in data.train]
    options = replace(arm.options, seed=seed)
    claim = nullcontext() if ranks.count > 1 else FileLock(shared / "models" / f".{digest[:16]}.lock")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with claim:
        if ranks.count == 1 and not checkpoint.exists():
            _fill_cache(arm, seed, data, cache, ranks)
        resume = (checkpoint / RECORD_FILE).exists()
        detector = fit(
            arm.config, images, checkpoint, options, cache=cache, weights=arm.weights, resume=resume, ranks=ranks
        )
        if ranks.rank == 0:  # trained to the end: no more to resume
            (checkpoint / OPTIMISER_FILE).unlink(missing_ok=True)
    return detector


def _fill_cache(arm: Arm, seed: int, data: AblationData, cache: Path, ranks: Ranks) -> None:
    """Compute the features in an order of this process's own, so that processes that need the same ones share it."""
    torch.manual_seed(seed)  # of "none" weights, as `fit` draws them
    reader = FeatureReader(FeatureNetwork(arm.config, arm.weights).eval().to(ranks.device), cache)
    # Where the encoder is still to be tuned, other features of the other splits will be needed.
    cases = data.train if arm.options.tune_encoder else [case for split in vars(data).values() for case in split]
    images = sorted({case.image for case in cases})
    random.SystemRandom().shuffle(images)
    for image in images:
        if not reader.has(image):
            reader.features(image)
