"""Values of a volume between its voxels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def interpolate(places: NDArray[np.float64], grid: NDArray[np.float32]) -> NDArray[np.float32]:
    """Interpolate a grid linearly, each axis of two samples or more; beyond it, its edge's values.

    Parameters
    ----------
    places : (3, n) indices along the grid's axes

    Returns
    -------
    (n,) float32
    """
    ends = np.array(grid.shape)[:, None] - 1
    places = places.clip(0, ends)
    corner = np.minimum(places.astype(np.intp), ends - 1)
    x, y, z = (places - corner).astype(np.float32)
    across, along = grid.shape[1] * grid.shape[2], grid.shape[2]
    index = corner[0] * across + corner[1] * along + corner[2]
    flat = grid.reshape(-1)

    def line(start: int) -> NDArray[np.float32]:
        low = flat[index + start]
        return low + z * (flat[index + (start + 1)] - low)

    def plane(start: int) -> NDArray[np.float32]:
        low = line(start)
        return low + y * (line(start + along) - low)

    low = plane(0)
    return low + x * (plane(across) - low)
