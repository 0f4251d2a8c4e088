"""From a skull-stripped volume to its place in the canonical grid, and the checks that it is a brain.

This is the one place that decides pose. A full registration would be another function from a volume to a
`Placement`.
"""

from __future__ import annotations

from dataclasses import dataclass

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
_STANDARD = (STANDARD_WIDTH, STANDARD_LENGTH)
SCALE_LIMITS = (0.8, 1.25)
_BRAIN_ML = (250.0, 2500.0)
EXTRACT = "extract the brain (for example with deepbet, HD-BET or SynthStrip)"
LEAST_AREA = 50.0  # mm^2 of brain in a plane for the plane to count as brain: stray voxels don't move the box
_FULL_END = 900.0  # mm^2 of brain in a volume's last plane, a mm of its thickness: a round end has less, a cut one more
_FEW_LOST = 3  # planes between two that are full: lost ones, and not the space beside a brain
_APART = 0.02  # of the brain: planes with less, and none between them and the rest, are something else
_PAPER_SLICES = (24, 120, 182)  # first, stop, of how many (METHOD.md, parity mode)


def find_brain(volume: Volume) -> NDArray[np.bool_]:
    """Brain voxels (X, Y, Z): those that differ from the background of a skull-stripped volume.

    The background is the value that most of the volume's faces have; it needn't be 0 or the minimum.

    Raises
    ------
    VolumeError
        If there is no uniform background (not skull-stripped), or too little or too much brain, or if the
        brain's proportions say that the header's orientation is wrong.
    """
    value, share = background(volume.data)
    brain = volume.data != np.float32(value)
    voxels = np.count_nonzero(brain)
    if share < 0.3 or voxels > 0.85 * brain.size:
        raise VolumeError(
            f"{printable(volume.path)}: has no uniform background, so it is not skull-stripped, or was "
            f"interpolated after that; {EXTRACT} as the last step"
        )
    millilitres = float(voxels * volume.voxel_ml)
    if not _BRAIN_ML[0] <= millilitres <= _BRAIN_ML[1]:
        remedy = "check that it is a whole brain, and its voxel size"
        if millilitres > _BRAIN_ML[1]:
            remedy = f"more likely a whole head, and not skull-stripped: {EXTRACT}; or its voxel size is wrong"
        raise VolumeError(
            f"{printable(volume.path)}: {millilitres:.0f} ml of it differ from the background; a brain has "
            f"{_BRAIN_ML[0]:.0f} to {_BRAIN_ML[1]:.0f} ml; {remedy}"
        )
    across, along, _ = brain_sides(brain, volume.zooms)
    width, length = (across.high - across.low) * volume.zooms[0], along.span(volume.zooms[1])
    if length is not None and width > 1.1 * length:
        raise VolumeError(
            f"{printable(volume.path)}: the brain is {width:.0f} mm from left to right and {length:.0f} mm from back "
            "to front, so the header's orientation is wrong, or the head is turned by some 40 degrees; correct it (for "
            "example with fslswapdim), or align it"
        )
    return brain


@dataclass(frozen=True)
class Side:
    """Where a brain begins and ends along an axis.

    Attributes
    ----------
    low, high : first voxel, and one past the last
    low_cut, high_cut : the field of view ends there, and the brain would go on
    apart : voxels of the brain in planes beyond, which others without brain part from it
    """

    low: int
    high: int
    low_cut: bool
    high_cut: bool
    apart: int

    def span(self, zoom: float) -> float | None:
        """Length in mm; None where an end is cut off."""
        return None if self.low_cut or self.high_cut else (self.high - self.low) * zoom


def brain_sides(brain: NDArray[np.bool_], zooms: tuple[float, float, float]) -> tuple[Side, Side, Side]:
    """Find the ends of a brain (X, Y, Z) along each axis; what lies apart and is little doesn't move them."""
    voxel = float(np.prod(zooms))
    x, y, z = (_side(counts, voxel / zoom, zoom) for counts, zoom in zip(plane_counts(brain), zooms, strict=True))
    return x, y, z


def _side(counts: NDArray[np.uint32], area: float, zoom: float) -> Side:
    """Of a plane's brain voxels, each of so many mm^2."""
    inside = np.flatnonzero(counts * area >= LEAST_AREA)
    if not inside.size:
        return Side(0, counts.size, False, False, 0)
    full = counts * area > _FULL_END * zoom
    steps = np.diff(inside)
    gaps = np.flatnonzero(steps > 1)
    lost = (steps[gaps] <= 1 + _FEW_LOST) & full[inside[gaps]] & full[inside[gaps + 1]]  # no end of the brain is full
    runs = np.split(inside, gaps[~lost] + 1)
    held = np.array([int(counts[run].sum()) for run in runs])
    large = np.flatnonzero(held >= _APART * held.sum())
    kept = slice(large[0], large[-1] + 1)
    low, high = int(runs[large[0]][0]), int(runs[large[-1]][-1]) + 1
    apart = int(held.sum() - held[kept].sum())
    return Side(low, high, low == 0 and bool(full[0]), high == counts.size and bool(full[-1]), apart)


def find_scale(zooms: tuple[float, float, float], sides: tuple[Side, Side, Side]) -> tuple[float, float, float]:
    """Divide the standard sizes by this brain's, by axis, before any limit.

    The axial scale is the mean of the other two, because where a skull stripper or the field of view ends the brainstem
    says nothing about size; that of an axis of which an end is cut off is the other's.
    """
    spans = [side.span(zoom) for side, zoom in zip(sides, zooms, strict=True)][:2]
    own = [standard / span if span else None for standard, span in zip(_STANDARD, spans, strict=True)]
    known = [scale for scale in own if scale is not None]
    common = float(np.exp(np.mean(np.log(known)))) if known else 1.0
    x, y = (common if scale is None else scale for scale in own)
    return x, y, common


def place(volume: Volume, brain: NDArray[np.bool_], grid: GridConfig) -> Placement:
    """Place a volume in the canonical grid.

    In the standard pose the brain's box has its middle in the middle of the plane, a standard width and
    length, and its top at a standard height. An end that the field of view cuts off is not used, but for the top, which
    has no other to take its place (`ssn.core.brain_doubts` says so).
    """
    if grid.paper:
        return _paper_placement(volume, grid)
    sides = brain_sides(brain, volume.zooms)
    scales = np.clip(find_scale(volume.zooms, sides), *SCALE_LIMITS)
    middle = (grid.plane - 1) / 2
    axes = []
    for side, zoom, limited, standard, size in zip(sides, volume.zooms, scales, _STANDARD, brain.shape, strict=False):
        scale = float(limited) * zoom
        if side.low_cut and not side.high_cut:
            offset = middle + standard / 2 - (side.high - 0.5) * scale
        elif side.high_cut and not side.low_cut:
            offset = middle - standard / 2 - (side.low - 0.5) * scale
        else:
            offset = middle - (side.low + side.high - 1) / 2 * scale
        axes.append(AxisMap(size, scale, offset))
    scale = float(scales[2]) * volume.zooms[2]
    offset = STANDARD_TOP - (sides[2].high - 0.5) * scale
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
