"""What a model looks at of a volume, and how what it says of that becomes a map of the volume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssn.core.likeness import Likeness, block_edges, compare, grey_blocks
from ssn.core.scoring import Calibration, anomaly_map
from ssn.core.slices import SliceStack
from ssn.core.straight import Turn, straighten
from ssn.core.tilt import find_tilt
from ssn.core.volume import Volume


@dataclass(frozen=True)
class Look:
    """A volume as a model looks at it.

    Attributes
    ----------
    read : the volume cut as it lies in its grid
    stack : what the model sees: the same, or the straightened volume cut
    likeness : to the healthy volumes that the model is calibrated on; None where it does not know their looks
    turn : the way back from a straightened volume; None where the head lies straight enough
    """

    read: SliceStack
    stack: SliceStack
    likeness: Likeness | None = None
    turn: Turn | None = None

    @classmethod
    def as_it_lies(cls, stack: SliceStack) -> Look:
        """Look at a volume that is compared with none."""
        return cls(stack, stack)

    @property
    def unseen(self) -> float:
        """How much of the brain lies outside of what the model looks at, in voxels as read."""
        voxel = 1.0 if self.turn is None else float(np.linalg.det(self.turn.matrix))
        return self.stack.unseen * voxel

    def without_slices(self) -> Look:
        """Keep where cells and voxels lie, and no intensities."""
        read, stack = (replace(each, slices=each.slices[:0].copy()) for each in (self.read, self.stack))
        return replace(self, read=read, stack=stack)

    def score_map(
        self, log_likelihood: NDArray[np.float32], places: NDArray[np.int64], calibration: Calibration
    ) -> NDArray[np.float32]:
        """Map (X, Y, Z) in the volume's own grid, from what the model says at places of `stack`, both (L,)."""
        seen = anomaly_map(log_likelihood, places, self.stack, calibration)
        return seen if self.turn is None else self.turn.turn_back(seen, self.read)


def look_at(volume: Volume, cut: Callable[[Volume], SliceStack], calibration: Calibration) -> Look:
    """Cut a volume for a model; one whose head is tilted against the healthy volumes is made straight first.

    Parameters
    ----------
    cut : makes slices of a volume as the model takes them
    calibration : the model's

    Raises
    ------
    VolumeError
        If the volume is not a usable brain.
    """
    read = cut(volume)
    if calibration.grey is None:
        return Look.as_it_lies(read)
    edges = block_edges(read.placement.grid, read.occupancy.shape[1])
    likeness = compare(grey_blocks(read), calibration.grey, edges)
    straight = None if likeness.tilted is None else straighten(volume, read, likeness.tilted)
    if straight is None:
        return Look(read, read, likeness)
    turned, turn = straight
    stack = cut(turned)
    left, _ = find_tilt(grey_blocks(stack), calibration.grey, edges) or (None, 0.0)
    return Look(read, stack, replace(likeness, left=left), turn)
