"""Intensity normalisation of a volume to 0..1."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ssn.core.atomic import printable
from ssn.core.brain_box import EVERYWHERE, Box
from ssn.core.errors import VolumeError
from ssn.core.tails import outer_percentiles
from ssn.core.volume import Volume

Normalisation = Literal["robust", "minmax"]
_PERCENTILES = (0.5, 99.5)
_ORDINARY = (1e-30, 1e37)  # width of a range of grey values in which float32 keeps its digits
_SAMPLE = 50_000  # voxels that show how many values an image has
_LEAST_VALUES, _MOST_OF_ONE = 16, 0.5
_LEAST_STEPS = 256  # of float32, that a range must have at where it lies


def intensity_range(
    data: NDArray[np.float32], brain: NDArray[np.bool_], mode: Normalisation = "robust"
) -> tuple[float, float]:
    """Values that become 0 and 1 (METHOD.md, Input).

    `robust` takes the 0.5 and 99.5 percentiles inside the brain; `minmax` the extremes of the whole volume,
    as the published method does.
    """
    if mode == "minmax":
        return float(data.min()), float(data.max())
    return outer_percentiles(data[brain], *_PERCENTILES)


def normalise(
    volume: Volume, brain: NDArray[np.bool_], mode: Normalisation = "robust", part: Box = EVERYWHERE
) -> NDArray[np.float32]:
    """Scale a part of a volume (X, Y, Z) to 0..1, clipped; with `robust`, background becomes 0.

    Raises
    ------
    VolumeError
        If its values are so alike, or so far from ordinary numbers, that nothing is left of them in float32, or so few
        that they are labels.
    """
    data, brain = volume.data[part], brain[part]
    low, high = intensity_range(data, brain, mode)
    if low != high:
        _check_range(volume.path, low, high)
    _check_values(volume.path, data[brain])
    with np.errstate(over="ignore"):  # beyond the range there may be anything
        scaled = data - np.float32(low)
    scaled /= np.float32(high - low)
    scaled.clip(0, 1, out=scaled)
    if mode == "robust":
        scaled *= brain
    return scaled


def _check_range(path: Path, low: float, high: float) -> None:
    span, step = high - low, float(np.spacing(np.float32(max(abs(low), abs(high)))))
    where = f"{printable(path)}: its grey values lie between {low:g} and {high:g}"
    if not _ORDINARY[0] <= span <= _ORDINARY[1]:
        raise VolumeError(f"{where}, which no scanner gives; scale them to an ordinary range (scl_slope)")
    if span < _LEAST_STEPS * step:
        raise VolumeError(
            f"{where}, too close together to tell tissues apart; check that it is an image, and take off an offset "
            "(scl_inter)"
        )


def _check_values(path: Path, inside: NDArray[np.float32]) -> None:
    """Refuse what has a value for each kind of tissue, and not a grey value for each voxel; `inside`: of the brain."""
    _, counts = np.unique(inside[:: max(1, inside.size // _SAMPLE)], return_counts=True)
    share = counts.max() / counts.sum()
    if counts.size < _LEAST_VALUES:
        what = f"its brain has no more than {counts.size} different values"
    elif share > _MOST_OF_ONE:
        what = f"{share:.0%} of its brain have the same value"
    else:
        return
    raise VolumeError(f"{printable(path)}: {what}, so it is a mask or a map of labels, not an image; give the image")
