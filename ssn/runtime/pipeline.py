"""One volume through the detector: read, prepare, encode, flow, map."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ssn.core.atomic import printable
from ssn.core.brain_doubts import brain_doubts
from ssn.core.bundle import Bundle
from ssn.core.errors import VolumeError
from ssn.core.look import look_at
from ssn.core.scoring import p_value, volume_score
from ssn.core.slice_metrics import slice_scores
from ssn.core.volume import Volume, read_volume
from ssn.runtime.backend import DEFAULT_BATCH, Runs, StageTimes, run_batches
from ssn.runtime.result import Result


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
        If the volume cannot be read or is not a usable brain, or the model gives no number for it.
    """
    times = StageTimes()
    start = time.perf_counter()
    volume = source if isinstance(source, Volume) else read_volume(source)
    times.add("read", time.perf_counter() - start)
    start = time.perf_counter()
    spec, calibration = bundle.spec, bundle.calibration
    look = look_at(volume, spec.cut, calibration)
    brain = look.read.brain
    doubts = brain_doubts(volume, look)
    times.add("prepare", time.perf_counter() - start)
    places, values = run_batches(backend, look.stack, spec.occupancy, batch, times, progress)
    start = time.perf_counter()
    score_map = look.score_map(values, places, calibration)
    level = calibration.threshold if threshold is None else threshold
    score = volume_score(score_map, brain, volume.voxel_ml)
    if not math.isfinite(score):
        raise VolumeError(
            f"{printable(volume.path)}: the model's answer is not finite; compute it in another way "
            "(--backend onnxruntime), and please report it"
        )
    slices = slice_scores(score_map, brain)
    times.add("map", time.perf_counter() - start)
    return Result(
        volume=volume,
        brain=brain,
        score_map=score_map,
        mask=((score_map > level) & brain).astype(np.uint8),
        threshold=level,
        score=score,
        p_value=p_value(score, calibration.healthy_scores),
        abnormal=score > calibration.volume_threshold,
        slice_scores=np.where(np.isfinite(slices), slices, np.nan).astype(np.float32),
        times=times,
        likeness=look.likeness,
        straightened=look.turn is not None,
        brain_doubts=doubts,
    )
