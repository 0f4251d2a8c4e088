"""What makes a brain's place in the grid, or its edge, doubtful: not enough to refuse it, and no map shows it."""

from __future__ import annotations

import numpy as np

from ssn.core.brain_box import plane_counts
from ssn.core.look import Look
from ssn.core.pose import EXTRACT, LEAST_AREA, SCALE_LIMITS, Side, brain_sides, find_scale
from ssn.core.slices import SliceStack
from ssn.core.volume import Volume, background

_FEW_ML = 1.0  # outside of the grid: worth no word
_FAINT = 0.03  # of the brain's range of values: all but the background
_HOLES = 0.005  # of the brain; folds alone make a tenth of that
_MISFIT = 1.1  # of a standard size, after the scale has gone as far as it may
_RIM = 2  # voxels of nothing but faint ones at an end: linear interpolation leaves one


def brain_doubts(volume: Volume, look: Look) -> list[str]:
    """Say what is doubtful about a volume's brain and where it was placed."""
    stack = look.read
    sides = brain_sides(stack.brain, volume.zooms)
    found = _rim_doubts(volume, stack, sides) + _hole_doubts(stack) + _lost_doubts(stack, sides) + _nan_doubts(volume)
    if stack.placement.grid.paper:  # a voxel is a millimetre to it, and it leaves out half of every brain
        return found + _paper_doubts(volume.zooms)
    return found + _pose_doubts(volume, sides) + _unseen_doubts(look.unseen * volume.voxel_ml)


def doubts_as_it_lies(volume: Volume, stack: SliceStack) -> list[str]:
    """Say what is doubtful about a volume that is compared with none: its header and its brain."""
    return [*volume.doubts, *brain_doubts(volume, Look.as_it_lies(stack))]


def _rim_doubts(volume: Volume, stack: SliceStack, sides: tuple[Side, Side, Side]) -> list[str]:
    """Interpolation after skull stripping makes waves around the brain, and all that isn't background is brain."""
    nothing = np.float32(background(volume.data)[0])
    every = tuple(slice(part.start, part.stop, 4) for part in stack.box)
    sample = np.abs(volume.data[every][stack.brain[every]] - nothing)
    if not sample.size:
        return []
    faint = _FAINT * np.percentile(sample, 99)
    for axis, (side, zoom) in enumerate(zip(sides, volume.zooms, strict=True)):
        least = LEAST_AREA / (np.prod(volume.zooms) / zoom)
        for end in (range(side.low, side.low + _RIM), range(side.high - _RIM, side.high)):
            planes = [np.abs(volume.data.take(index, axis) - nothing) > faint for index in end]
            if all(np.count_nonzero(plane) < least for plane in planes):
                return [
                    f"it ends in {_RIM} voxels or more of values that are all but the background's, as interpolation "
                    "after skull stripping leaves them, and they count as brain; set them to its value, or "
                    "interpolate linearly"
                ]
    return []


def _hole_doubts(stack: SliceStack) -> list[str]:
    """Brain with the background's value is none: of every third voxel, those with brain on all six sides."""
    brain = np.ascontiguousarray(stack.brain[stack.box][::3, ::3, ::3])
    enclosed = ~brain
    for axis in range(3):
        enclosed &= np.logical_or.accumulate(brain, axis)
        enclosed &= np.flip(np.logical_or.accumulate(np.flip(brain, axis), axis), axis)
    share = int(np.count_nonzero(enclosed)) / (int(np.count_nonzero(brain)) or 1)
    if share < _HOLES:
        return []
    return [
        f"{share:.1%} of what is inside of it have the background's value, and count as background; if skull and scalp "
        f"are in it, {EXTRACT}, or else give the background a value that no tissue has"
    ]


def _lost_doubts(stack: SliceStack, sides: tuple[Side, Side, Side]) -> list[str]:
    """Slices without brain between others with it: holes that reach the outside, so that nothing encloses them."""
    found = []
    for name, side, counts in zip(("sagittal", "coronal", "axial"), sides, plane_counts(stack.brain), strict=True):
        lost = int(np.count_nonzero(counts[side.low : side.high] == 0))
        if lost:
            found.append(
                f"{lost} of its {name} slices, between others with brain, hold none; convert it "
                "again from its source, or do not trust the map beside them"
            )
    return found


def _nan_doubts(volume: Volume) -> list[str]:
    millilitres = volume.nonfinite_voxels * volume.voxel_ml
    if millilitres < _FEW_ML:
        return []
    return [
        f"{millilitres:.0f} ml of it are NaN or infinite, and count as background; if they lie in the brain, do not "
        "trust the map beside them"
    ]


def _pose_doubts(volume: Volume, sides: tuple[Side, Side, Side]) -> list[str]:
    found = []
    if sides[2].high_cut:
        found.append(
            "the top of the head is cut off, so its height is guessed, and each place is compared with one further up; "
            "do not trust the map"
        )
    across, along, _ = sides
    ends = {"left": across.low_cut, "right": across.high_cut, "back": along.low_cut, "front": along.high_cut}
    if any(ends.values()):
        where = " and ".join(name for name, cut in ends.items() if cut)
        found.append(f"the field of view cuts off its {where}; do not trust the map beside that")
    smallest, largest = SCALE_LIMITS
    scales = find_scale(volume.zooms, sides)
    if min(scales) * _MISFIT < smallest or max(scales) > largest * _MISFIT:
        size = " x ".join(
            f"{(side.high - side.low) * zoom:.0f}" for side, zoom in zip(sides, volume.zooms, strict=True)
        )
        found.append(
            f"its brain measures {size} mm, which the model cannot bring to its standard size; check its voxel size, "
            "and that it is an adult's brain alone"
        )
    apart = max(side.apart for side in sides) * volume.voxel_ml
    if apart:
        found.append(
            f"{apart:.1f} ml lie apart from the brain, and count as brain; set them to the background's value, or, if "
            "they are brain beside a lost slice, convert it again from its source"
        )
    return found


def _paper_doubts(zooms: tuple[float, float, float]) -> list[str]:
    if all(SCALE_LIMITS[0] <= zoom <= SCALE_LIMITS[1] for zoom in zooms):
        return []
    size = " x ".join(f"{zoom:.3g}" for zoom in zooms)
    return [f"its voxels measure {size} mm, and the model takes each for 1 mm, as published; resample it to 1 mm"]


def _unseen_doubts(millilitres: float) -> list[str]:
    if millilitres < _FEW_ML:
        return []
    return [
        f"{millilitres:.0f} ml of it lie outside of what the model looks at, and get no score; check that it is the "
        "brain alone, without the neck"
    ]
