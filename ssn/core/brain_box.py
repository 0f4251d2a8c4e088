"""Where in a volume the brain is: what is outside of its box need not be computed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]
EVERYWHERE: Box = (slice(None), slice(None), slice(None))


def plane_counts(brain: NDArray[np.bool_]) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]:
    """Brain voxels in each plane across x, y and z of a mask (X, Y, Z); (X,), (Y,) and (Z,)."""
    columns = brain.view(np.uint8).sum(0, dtype=np.min_scalar_type(len(brain)))  # the smallest type adds fastest
    across_x = np.array([np.count_nonzero(plane) for plane in brain], np.uint32)
    return across_x, columns.sum(1, dtype=np.uint32), columns.sum(0, dtype=np.uint32)


def brain_box(brain: NDArray[np.bool_], margin: int = 0) -> Box:
    """Smallest box with all of a brain (X, Y, Z), `margin` voxels wider on each side where the volume goes on."""
    sides = []
    for counts in plane_counts(brain):
        inside = np.flatnonzero(counts)
        sides.append(slice(max(int(inside[0]) - margin, 0), min(int(inside[-1]) + 1 + margin, counts.size)))
    x, y, z = sides
    return x, y, z
