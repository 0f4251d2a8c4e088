"""From a skull-stripped volume to its place in the canonical grid, and the checks that it is a brain.

This is the one place that decides pose. A full registration would be another function from a volume to a
`Placement`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssn.core.atomic import printable
from ssn.core.brain_box import plane_counts
from ssn.core.errors import VolumeError
from ssn.core.geometry import AxisMap, GridConfig, Placement
from ssn.core.volume import Volume, background

# The ICBM152 template's brain, and where the canonical grid has its top, in mm.
STANDARD_WIDTH = 146.0
STANDARD_LENGTH = 182.0
STANDARD_TOP = 174.0
_SCALE_LIMITS = (0.8, 1.25)
_BRAIN_ML = (250.0, 2500.0)
_LEAST_AREA = 50.0  # mm^2 of brain in a plane for the plane to count as brain: stray voxels don't move the box
_PAPER_SLICES = (24, 120, 182)  # first, stop, of how many (METHOD.md, parity mode)


def find_brain(volume: Volume) -> NDArray[np.bool_]:
    """Brain voxels (X, Y, Z): those that differ from the background of a skull-stripped volume.

    The background is the value that most of the volume's faces have; it needn't be 0 or the minimum.

    Raises
    ------
    VolumeError
        If there is no uniform background (not skull-stripped), or too little or too much brain, or the same value in
        all of it, or if the brain's proportions say that the header's orientation is wrong.
    """
    value, share = background(volume.data)
    brain = volume.data != np.float32(value)
    voxels = np.count_nonzero(brain)
    if share < 0.3 or voxels > 0.85 * brain.size:
        raise VolumeError(
            f"{printable(volume.path)}: has no uniform background, so it is not skull-stripped; "
            "extract the brain first (for example with HD-BET or SynthStrip)"
        )
    millilitres = float(voxels * volume.voxel_ml)
    if not _BRAIN_ML[0] <= millilitres <= _BRAIN_ML[1]:
        raise VolumeError(
            f"{printable(volume.path)}: {millilitres:.0f} ml of it differ from the background; a brain has "
            f"{_BRAIN_ML[0]:.0f} to {_BRAIN_ML[1]:.0f} ml. Check that it is a whole, skull-stripped brain, "
            "and its voxel size"
        )
    first = volume.data.ravel()[brain.argmax()]
    if np.count_nonzero(volume.data == first) == voxels:
        raise VolumeError(
            f"{printable(volume.path)}: has one value in the whole brain, so it is a mask, not an image; give the image"
        )
    (left, right), (back, front), _ = _extents(brain, volume.zooms)
    width, length = (right - left) * volume.zooms[0], (front - back) * volume.zooms[1]
    cut = back == 0 or front == brain.shape[1]
    if width > 1.1 * length and not cut:
        raise VolumeError(
            f"{printable(volume.path)}: the brain is {width:.0f} mm from left to right and {length:.0f} mm from back "
            "to front, so the header's orientation is wrong, or the head is turned by some 40 degrees; correct it (for "
            "example with fslswapdim), or align it"
        )
    return brain


def _extents(brain: NDArray[np.bool_], zooms: tuple[float, float, float]) -> list[tuple[int, int]]:
    """First and one-past-last index along each axis with enough brain in its plane."""
    extents = []
    for counts, zoom in zip(plane_counts(brain), zooms, strict=True):
        inside = np.flatnonzero(counts * (np.prod(zooms) / zoom) >= _LEAST_AREA)
        extents.append((int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, counts.size))
    return extents


def place(volume: Volume, brain: NDArray[np.bool_], grid: GridConfig) -> Placement:
    """Place a volume in the canonical grid.

    In the standard pose the brain's box has its middle in the middle of the plane, a standard width and
    length, and its top at a standard height; the axial scale is the mean of the other two, because where a
    skull stripper or the field of view ends the brainstem says nothing about size. An end of the box that
    lies on the volume's own border is cut off and is not used.
    """
    if grid.paper:
        return _paper_placement(volume, grid)
    boxes = _extents(brain, volume.zooms)
    scales: list[float | None] = []
    for axis, standard in ((0, STANDARD_WIDTH), (1, STANDARD_LENGTH)):
        low, high = boxes[axis]
        cut = low == 0 or high == brain.shape[axis]
        scales.append(None if cut else standard / ((high - low) * volume.zooms[axis]))
    known = [scale for scale in scales if scale is not None]
    common = float(np.clip(np.exp(np.mean(np.log(known))), *_SCALE_LIMITS)) if known else 1.0
    axes = []
    for axis, standard in ((0, STANDARD_WIDTH), (1, STANDARD_LENGTH)):
        low, high = boxes[axis]
        own = scales[axis]
        scale = (common if own is None else float(np.clip(own, *_SCALE_LIMITS))) * volume.zooms[axis]
        middle = (grid.plane - 1) / 2
        low_cut, high_cut = low == 0, high == brain.shape[axis]
        if low_cut and not high_cut:
            offset = middle + standard / 2 - (high - 0.5) * scale
        elif high_cut and not low_cut:
            offset = middle - standard / 2 - (low - 0.5) * scale
        else:
            offset = middle - (low + high - 1) / 2 * scale
        axes.append(AxisMap(brain.shape[axis], scale, offset))
    scale = common * volume.zooms[2]
    offset = STANDARD_TOP - (boxes[2][1] - 0.5) * scale
    return Placement(grid, (axes[0], axes[1], AxisMap(brain.shape[2], scale, offset)))


def _paper_placement(volume: Volume, grid: GridConfig) -> Placement:
    """Centred crop or zero padding in the plane; the published axial window, resized only where it is short."""
    axes = []
    for axis in (0, 1):
        size = volume.data.shape[axis]
        axes.append(AxisMap(size, 1.0, (grid.plane - size) // 2))
    size = volume.data.shape[2]
    first, _, registered = _PAPER_SLICES
    if size == registered:
        depth = AxisMap(size, 1.0, -first)
    elif size >= grid.depth:
        depth = AxisMap(size, 1.0, -((size - grid.depth) // 2))
    else:
        scale = grid.depth / size
        depth = AxisMap(size, scale, 0.5 * scale - 0.5)
    return Placement(grid, (axes[0], axes[1], depth))
