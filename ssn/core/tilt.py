"""How far a head is turned in its own voxel grid, against healthy ones.

A map does not show it as what it is: places are compared with other places, and healthy ones come out high.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssn.core.trilinear import interpolate

_STEPS = (8.0, 4.0, 2.0)  # degrees, one after the other: one person's anatomy differs from another's by more
_FARTHEST = 40.0  # degrees about an axis: beyond, what was found is no tilt
_LARGEST_BLOCK = 16.0  # mm: larger ones turn without showing it
_LEAST_ML = 500.0  # of blocks with brain: less is no whole head
_ENOUGH = 1400  # blocks that are compared: more say the same
_LEAST_GAIN = 1e-4  # of correlation, for another step
_CLEAR_GAIN = 0.02  # of correlation, for more than a first step: less is one person's anatomy


@dataclass(frozen=True)
class Tilt:
    """A head's rotation in its grid, degrees, about the axes to the right, to the front and to the top, in that order.

    Attributes
    ----------
    pitch : nose up
    roll : top of the head to its right
    yaw : nose to its left
    """

    pitch: float = 0.0
    roll: float = 0.0
    yaw: float = 0.0

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(3, 3): from a place (x, y, z) in a straight head to that in this one."""
        (p, r, y), none = np.deg2rad([self.pitch, self.roll, self.yaw]), 0.0
        about_x = [[1, none, none], [none, np.cos(p), -np.sin(p)], [none, np.sin(p), np.cos(p)]]
        about_y = [[np.cos(r), none, np.sin(r)], [none, 1, none], [-np.sin(r), none, np.cos(r)]]
        about_z = [[np.cos(y), -np.sin(y), none], [np.sin(y), np.cos(y), none], [none, none, 1]]
        return np.array(about_z) @ np.array(about_y) @ np.array(about_x)

    @property
    def degrees(self) -> float:
        """Angle of the whole rotation."""
        return float(np.rad2deg(np.arccos(np.clip((np.trace(self.matrix) - 1) / 2, -1, 1))))

    def __str__(self) -> str:
        parts = [
            (self.pitch, "nose up", "nose down"),
            (self.roll, "to its right shoulder", "to its left shoulder"),
            (self.yaw, "nose to its left", "nose to its right"),
        ]
        said = [f"{abs(angle):.0f} {more if angle > 0 else less}" for angle, more, less in parts if abs(angle) >= 1]
        return ", ".join(said) or "none"


def find_tilt(
    own: NDArray[np.float32], healthy: NDArray[np.float32], edges: tuple[float, float, float]
) -> tuple[Tilt, float] | None:
    """Find the rotation at which a volume's blocks are most like healthy ones.

    Parameters
    ----------
    own, healthy : (D, H, W) mean grey values of blocks, NaN where there is no brain; rows are y, columns x
    edges : of a block along each axis of these, in mm

    Returns
    -------
    The rotation, to a few degrees, and the correlation when it is undone; none where a large one would hardly make
    them more alike, because one person's anatomy does as much. None where blocks are too large, or too few, to tell.
    """
    places: NDArray[np.float64] = np.argwhere(np.isfinite(healthy)).astype(np.float64)
    solid = min(len(places), int(np.isfinite(own).sum())) * float(np.prod(edges)) / 1000
    if max(edges) > _LARGEST_BLOCK or solid < _LEAST_ML:
        return None
    middle = (places.min(0) + places.max(0)) / 2
    # Between blocks: there, no rotation is interpolated as all others are.
    places = places[:: max(len(places) // _ENOUGH, 1)] + 0.5
    mm = ((places - middle) * edges)[:, ::-1]  # (n, 3), x, y, z
    grey = np.pad(np.nan_to_num(own), 1)
    expected = interpolate(places.T + 1, np.pad(np.nan_to_num(healthy), 1))

    def likeness(angles: tuple[float, float, float]) -> float:
        turned = (mm @ Tilt(*angles).matrix.T)[:, ::-1] / edges + middle
        return float(np.corrcoef(interpolate(turned.T + 1, grey), expected)[0, 1])

    at = (0.0, 0.0, 0.0)
    best = lying = likeness(at)
    for step in _STEPS:
        while True:
            near = [
                (at[0] + step * x, at[1] + step * y, at[2] + step * z)
                for x, y, z in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
            ]
            value, angles = max((likeness(angles), angles) for angles in near)
            if value <= best + _LEAST_GAIN or max(map(abs, angles)) > _FARTHEST:
                break
            at, best = angles, value
    found = Tilt(*at)
    if found.degrees > _STEPS[0] and best - lying < _CLEAR_GAIN:
        return Tilt(), lying
    return found, best
