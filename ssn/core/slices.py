"""From a volume to slice windows: what the encoder sees, and which map cells have brain in them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssn.core.brain_box import EVERYWHERE, Box, brain_box
from ssn.core.geometry import GridConfig, Placement, ThickSlice
from ssn.core.intensity import Normalisation, normalise
from ssn.core.pose import find_brain, place
from ssn.core.volume import Volume


@dataclass(frozen=True)
class SliceStack:
    """A volume as the model takes it. Slices without brain are left out.

    Attributes
    ----------
    slices : (D, H, W) float32
        Normalised axial slices of windows `first` to `first` + W - 1: all of each, or one thick one.
    occupancy : (W, G, G) float32
        Share of each map cell that is brain.
    first : int
        First window in the canonical grid's depth.
    placement : where the volume lies in the canonical grid
    brain : (X, Y, Z) bool, native grid
    box : the smallest with all of `brain`
    """

    slices: NDArray[np.float32]
    occupancy: NDArray[np.float32]
    first: int
    placement: Placement
    brain: NDArray[np.bool_]
    box: Box

    @property
    def slices_a_window(self) -> int:
        """Slices that the encoder sees of a window: 1 where they are thick."""
        return len(self.slices) // len(self.occupancy)

    @property
    def by_window(self) -> NDArray[np.float32]:
        """The slices by window, (windows, slices_a_window, H, W); a view."""
        return self.slices.reshape(len(self.occupancy), -1, *self.slices.shape[1:])

    @property
    def unseen(self) -> int:
        """Brain voxels outside of the canonical grid: the model does not look there."""
        seen = self.placement.seen
        if all(own.start >= side.start and own.stop <= side.stop for own, side in zip(self.box, seen, strict=True)):
            return 0
        return int(np.count_nonzero(self.brain) - np.count_nonzero(self.brain[seen]))

    def part(self, start: int, stop: int) -> SliceStack:
        """Return the stack's windows `start` to `stop` - 1, counted from its first."""
        each = self.slices_a_window
        return replace(
            self,
            slices=self.slices[start * each : stop * each],
            occupancy=self.occupancy[start:stop],
            first=self.first + start,
        )

    def thickened(self, kind: ThickSlice | None) -> SliceStack:
        """Return what `cut_slices` gives with `thick=kind`, made of the slices of a stack that was cut without."""
        if kind is None:
            return self
        windows = self.by_window
        return replace(self, slices=windows.mean(1) if kind == "slab" else windows[:, windows.shape[1] // 2])

    def occupied_places(self, occupancy: float) -> NDArray[np.int64]:
        """Places (L,), ascending, of the map cells of which a share of at least `occupancy` is brain.

        A place is window * G * G + row * G + column, the window counted in the canonical grid.
        """
        cells = self.occupancy[0].size
        return np.flatnonzero(self.occupancy >= occupancy) + self.first * cells


def cut_slices(
    volume: Volume,
    grid: GridConfig,
    cells: int,
    normalisation: Normalisation = "robust",
    thick: ThickSlice | None = None,
) -> SliceStack:
    """Find the brain, place it, normalise and resample it.

    Parameters
    ----------
    cells : int
        Map cells a row (G): the encoder's finest feature grid; it divides `grid.plane`.
    thick : make one slice of each window: their mean ("slab") or the "middle" one

    Raises
    ------
    VolumeError
        If the volume is not a usable skull-stripped brain.
    """
    brain = find_brain(volume)
    placement = place(volume, brain, grid)
    box = brain_box(brain)
    first, stop = (0, grid.windows) if grid.paper else placement.windows_with(box)
    seen = box if normalisation == "robust" else EVERYWHERE  # only "robust" makes the background 0
    values = normalise(volume, brain, normalisation, seen)
    slices = placement.to_canonical(values, first, stop, thick, seen)
    occupancy = placement.cell_means(brain[box].astype(np.float32), first, stop, cells, box)
    return SliceStack(slices, occupancy, first, placement, brain, box)
