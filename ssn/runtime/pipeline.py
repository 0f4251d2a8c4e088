"""One volume through the detector: read, prepare, encode, flow, map; and its outputs on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ssn.core.atomic import write_text_atomic
from ssn.core.bundle import Bundle
from ssn.core.errors import OutputError
from ssn.core.scoring import anomaly_map, p_value, volume_score
from ssn.core.slice_metrics import slice_scores
from ssn.core.volume import Volume, read_volume, write_map
from ssn.runtime.backend import DEFAULT_BATCH, Backend, Runs, StageTimes, run_batches
from ssn.runtime.result import Result, as_record

OUTPUT_SUFFIXES = ("_anomaly.nii.gz", "_mask.nii.gz", ".json", ".png")


def infer_volume(
    source: Path | Volume,
    bundle: Bundle,
    backend: Runs,
    *,
    threshold: float | None = None,
    batch: int = DEFAULT_BATCH,
    progress: Callable[[float], None] = lambda share: None,
) -> Result:
    """Run a bundle on one volume.

    Parameters
    ----------
    source : path of a skull-stripped NIfTI volume, or a volume read already
    threshold : of the map, in z; the bundle's own if not given
    batch : slices at once; it bounds memory and does not change the result

    Raises
    ------
    VolumeError
        If the volume cannot be read or is not a usable brain.
    """
    times = StageTimes()
    start = time.perf_counter()
    volume = source if isinstance(source, Volume) else read_volume(source)
    times.add("read", time.perf_counter() - start)
    start = time.perf_counter()
    spec, calibration = bundle.spec, bundle.calibration
    stack = spec.cut(volume)
    times.add("prepare", time.perf_counter() - start)
    places, values = run_batches(backend, stack, spec.occupancy, batch, times, progress)
    start = time.perf_counter()
    score_map = anomaly_map(values, places, stack, calibration)
    level = calibration.threshold if threshold is None else threshold
    score = volume_score(score_map, stack.brain, volume.zooms)
    slices = slice_scores(score_map, stack.brain, axis=2)
    times.add("map", time.perf_counter() - start)
    return Result(
        volume=volume,
        brain=stack.brain,
        score_map=score_map,
        mask=((score_map > level) & stack.brain).astype(np.uint8),
        threshold=level,
        score=score,
        p_value=p_value(score, calibration.healthy_scores),
        abnormal=score > calibration.volume_threshold,
        slice_scores=np.where(np.isfinite(slices), slices, np.nan).astype(np.float32),
        times=times,
    )


def output_paths(folder: Path, name: str, *, picture: bool = True) -> list[Path]:
    """Paths of a volume's outputs."""
    return [folder / f"{name}{suffix}" for suffix in OUTPUT_SUFFIXES if picture or suffix != ".png"]


def refuse_existing(paths: list[Path]) -> None:
    """Raise OutputError if any of the outputs exists."""
    for path in paths:
        if path.exists():
            raise OutputError(f"{path}: exists already; use --force to replace it, or another output folder")


def write_outputs(
    result: Result,
    bundle: Bundle,
    backend: Backend,
    folder: Path,
    name: str,
    *,
    picture: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `NAME_anomaly.nii.gz`, `NAME_mask.nii.gz`, `NAME.png` and `NAME.json`: all, or none.

    Returns the JSON's contents.

    Raises
    ------
    OutputError
        If an output exists and is not to be overwritten, or can't be written.
    """
    paths = output_paths(folder, name, picture=picture)
    if not overwrite:
        refuse_existing(paths)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose another output folder") from error
    fresh = [path for path in paths if not path.exists()]
    try:
        start = time.perf_counter()
        write_map(paths[0], result.score_map, result.volume, overwrite=overwrite)
        write_map(paths[1], result.mask, result.volume, overwrite=overwrite)
        result.times.add("write", time.perf_counter() - start)
        if picture:
            from ssn.runtime.montage import write_montage

            start = time.perf_counter()
            write_montage(paths[3], result, bundle, overwrite=overwrite)
            result.times.add("picture", time.perf_counter() - start)
        record = as_record(result, bundle, backend)
        write_text_atomic(paths[2], json.dumps(record, indent=1) + "\n", overwrite=overwrite)
    except BaseException:
        for path in fresh:
            path.unlink(missing_ok=True)
        raise
    return record
