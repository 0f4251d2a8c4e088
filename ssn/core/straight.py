"""A tilted head is made straight before the model looks at it, and its map turned back onto the voxels as read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssn.core.brain_box import brain_box
from ssn.core.intensity import intensity_range
from ssn.core.pose import brain_sides
from ssn.core.slices import SliceStack
from ssn.core.tilt import Tilt
from ssn.core.trilinear import interpolate
from ssn.core.volume import Volume, background

_EDGE = 1.0  # mm, of a voxel: as in the canonical grid
_MARGIN = 2  # voxels around the brain
_LONGEST = 2.0  # mm, of a voxel: what thicker slices leave out, no interpolation turns


@dataclass(frozen=True)
class Turn:
    """How a straightened volume lies in the one that was read: index there = matrix @ index here + origin.

    Attributes
    ----------
    matrix, origin : (3, 3) and (3,)
    """

    matrix: NDArray[np.float64]
    origin: NDArray[np.float64]

    def turn_back(self, score_map: NDArray[np.float32], stack: SliceStack) -> NDArray[np.float32]:
        """Turn a straightened volume's map back to (X, Y, Z) of the volume that was read, which `stack` is cut from."""
        brain = stack.brain[stack.box]
        turn = np.linalg.inv(self.matrix).astype(np.float64)
        origin = turn @ (np.array([side.start for side in stack.box]) - self.origin)
        result = np.zeros(stack.brain.shape, np.float32)
        for target, inside, places in zip(result[stack.box], brain, _planes(turn, origin, brain.shape), strict=True):
            target[inside] = interpolate(places[:, inside], score_map)
        return result


def straighten(volume: Volume, stack: SliceStack, tilt: Tilt) -> tuple[Volume, Turn] | None:
    """Turn a volume by its head's tilt, by linear interpolation; `stack` is cut from it as it lies.

    Returns
    -------
    A volume with voxels of 1 mm, whose affine and header are still those of the one that was read, and the way back.
    None where the field of view cuts the brain off at a side or the top, because the pose has to know of such an end,
    where slices are thick, and in the published window, which takes voxels as they are.
    """
    x, y, z = brain_sides(stack.brain, volume.zooms)
    cut = x.low_cut or x.high_cut or y.low_cut or y.high_cut or z.high_cut
    if cut or max(volume.zooms) > _LONGEST or stack.placement.grid.paper:
        return None
    turn = tilt.matrix * _EDGE / np.array(volume.zooms)[:, None]
    ends = _column_ends(stack.brain) @ np.linalg.inv(turn).T
    first = np.floor(ends.min(0)) - _MARGIN
    origin = turn @ first
    shape = (np.ceil(ends.max(0)) + _MARGIN - first).astype(int) + 1
    data = np.full(shape, background(volume.data)[0], np.float32)
    # Around the brain lies its darkest value, as around one that isn't turned: the file's own may be anything.
    box = brain_box(stack.brain, margin=1)
    grey = np.where(stack.brain[box], volume.data[box], np.float32(intensity_range(volume.data, stack.brain)[0]))
    corner = np.array([side.start for side in box])[:, None]
    size = np.array(stack.brain.shape)[:, None, None]
    for target, places in zip(data, _planes(turn, origin, data.shape), strict=True):
        nearest = np.rint(places).astype(np.intp)
        inside: NDArray[np.bool_] = np.logical_and.reduce((nearest >= 0) & (nearest < size))
        inside[inside] = stack.brain[tuple(nearest[:, inside])]
        target[inside] = interpolate(places[:, inside] - corner, grey)
    return replace(volume, data=data, zooms=(_EDGE, _EDGE, _EDGE)), Turn(turn, origin)


def _column_ends(brain: NDArray[np.bool_]) -> NDArray[np.intp]:
    """(n, 3) lowest and highest brain voxels of each column along z: none lies farther out, in any direction."""
    x, y = np.nonzero(np.logical_or.reduce(brain, 2))
    lowest = brain.argmax(2)[x, y]
    highest = brain.shape[2] - 1 - brain[:, :, ::-1].argmax(2)[x, y]
    return np.concatenate([np.stack([x, y, z], 1) for z in (lowest, highest)])


def _planes(
    turn: NDArray[np.float64], origin: NDArray[np.float64], shape: tuple[int, ...]
) -> Iterator[NDArray[np.float64]]:
    """Places (3, y, z) of the voxels of each plane of a grid, in the grid that `turn` and `origin` lead to."""
    rows, columns = np.indices(shape[1:])
    plane = np.multiply.outer(turn[:, 1], rows) + np.multiply.outer(turn[:, 2], columns)
    for x in range(shape[0]):
        yield plane + (turn[:, 0] * x + origin)[:, None, None]
