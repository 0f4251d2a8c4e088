"""One volume through the detector: read, prepare, encode, flow, map; and its outputs on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssn import __version__
from ssn.core.atomic import write_text_atomic
from ssn.core.bundle import INTENDED_USE, Bundle
from ssn.core.errors import OutputError
from ssn.core.scoring import anomaly_map, p_value, volume_score
from ssn.core.slices import cut_slices
from ssn.core.volume import Volume, read_volume, write_map
from ssn.runtime.backend import DEFAULT_BATCH, Backend, StageTimes, run_batches

OUTPUT_SUFFIXES = ("_anomaly.nii.gz", "_mask.nii.gz", ".json", ".png")


@dataclass(frozen=True)
class Result:
    """What the detector says of one volume.

    Attributes
    ----------
    volume : the input
    brain : (X, Y, Z) bool, canonical axis order, as all arrays here
    score_map : (X, Y, Z) float32, z-scores against healthy volumes, 0 outside the brain
    mask : (X, Y, Z) uint8, 1 where the map is above `threshold`
    threshold : float, z
    score : float
        Of the volume: mean of the map's highest millilitre.
    p_value : float
        Share of healthy volumes that score as high (conformal, the volume itself counted in).
    abnormal : bool
        The score is above that of 95 % of the healthy volumes.
    slice_scores : (Z,) float32, the map's maximum in each axial slice; NaN in a slice without brain
    times : seconds a stage
    """

    volume: Volume
    brain: NDArray[np.bool_]
    score_map: NDArray[np.float32]
    mask: NDArray[np.uint8]
    threshold: float
    score: float
    p_value: float
    abnormal: bool
    slice_scores: NDArray[np.float32]
    times: StageTimes

    @property
    def above_ml(self) -> float:
        """Volume of the mask in ml."""
        return float(self.mask.sum() * np.prod(self.volume.zooms) / 1000)


def infer_volume(
    source: Path | Volume,
    bundle: Bundle,
    backend: Backend,
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
    stack = cut_slices(volume, spec.grid, spec.cells, spec.normalisation)
    times.add("prepare", time.perf_counter() - start)
    places, values = run_batches(backend, stack, spec.occupancy, batch, times, progress)
    start = time.perf_counter()
    score_map = anomaly_map(values, places, stack, calibration)
    level = calibration.threshold if threshold is None else threshold
    score = volume_score(score_map, stack.brain, volume.zooms)
    slices = np.where(stack.brain, score_map, -np.inf).max((0, 1))
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


def as_record(result: Result, bundle: Bundle, backend: Backend) -> dict[str, Any]:
    """Everything but the arrays, for JSON. The input's folder is left out: folders can name patients."""
    volume = result.volume
    peak = np.unravel_index(int(result.score_map.argmax()), result.score_map.shape)
    return {
        "input": {
            "name": volume.path.name,
            "sha256": volume.sha256,
            "nonfinite_voxels_set_to_background": volume.nonfinite_voxels,
        },
        "volume": {
            "score": round(result.score, 4),
            "p_value": round(result.p_value, 4),
            "abnormal": bool(result.abnormal),
            "threshold": round(bundle.calibration.volume_threshold, 4),
            "healthy_volumes": int(bundle.calibration.healthy_scores.size),
        },
        "map": {
            "threshold_z": round(result.threshold, 4),
            "above_threshold_ml": round(result.above_ml, 3),
            "highest_z": round(float(result.score_map.max()), 4),
            "highest_at_mm": [round(v, 1) for v in world_position(volume, peak)],
        },
        "slices": [None if np.isnan(z) else round(float(z), 4) for z in result.slice_scores],
        "times_ms": {stage: round(seconds * 1000, 1) for stage, seconds in result.times.seconds.items()},
        "backend": backend.describe(),
        "bundle": {"name": bundle.spec.name, "sha256": bundle.digest},
        "version": __version__,
        "intended_use": INTENDED_USE,
    }


def world_position(volume: Volume, index: tuple[np.intp, ...] | tuple[int, ...]) -> list[float]:
    """World coordinates (x, y, z), in the affine's unit, of a voxel in canonical axis order."""
    own = np.zeros(3)
    for axis in range(3):
        canonical, direction = (int(v) for v in volume.orientation[axis])
        size = volume.data.shape[canonical]
        own[axis] = index[canonical] if direction > 0 else size - 1 - index[canonical]
    return [float(v) for v in (volume.affine @ [*own, 1])[:3]]


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
