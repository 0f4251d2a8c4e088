"""How much memory a batch takes on the GPU, and the largest batch that a limit allows.

Everything on the device is allocated once and for the largest batch, so the peak depends on the batch alone: a
longer volume or a larger cohort passes through the same buffers. What the CUDA driver itself takes to start (a
few hundred MB, the same for every program) is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ssn.core.bundle import ModelSpec
from ssn.core.errors import MemoryLimitError

MEGABYTE = 10**6


@dataclass(frozen=True)
class BatchLayout:
    """Shapes and types of a batch's tensors.

    Attributes
    ----------
    window : slices a window, in the grid: what a batch is counted in
    each : slices of a window that the encoder sees: `window`, or 1 where they are thick
    plane : pixels a side of a slice (H = W)
    cells : map cells a side (G)
    channels : of a feature (C)
    slices_dtype, features_dtype : "float16" or "float32", as the engines take them
    """

    window: int
    each: int
    plane: int
    cells: int
    channels: int
    slices_dtype: str
    features_dtype: str

    @classmethod
    def of(cls, spec: ModelSpec, slices_dtype: str = "float32", features_dtype: str = "float32") -> BatchLayout:
        """Layout of a bundle's batches."""
        grid, each = spec.grid, spec.slices_a_window
        return cls(grid.window, each, grid.plane, spec.cells, spec.features, slices_dtype, features_dtype)

    @property
    def slice_bytes(self) -> int:
        """Bytes of the slices of one window: one grey channel."""
        return self.each * self.plane**2 * np.dtype(self.slices_dtype).itemsize

    @property
    def feature_bytes(self) -> int:
        """Bytes of the features of one window."""
        return self.channels * self.cells**2 * np.dtype(self.features_dtype).itemsize

    def window_bytes(self) -> int:
        """Bytes on the device of one window in one slot: slices, features, places (int64), values (float32)."""
        return self.slice_bytes + self.feature_bytes + self.cells**2 * (8 + 4)


@dataclass(frozen=True)
class Footprint:
    """Device memory of a pipeline as a function of its windows.

    Attributes
    ----------
    layout : of its batches
    slots : sets of buffers
    weights : bytes of both engines
    workspace : bytes that the engines compute in, of a number of windows; encoder and flow share it
    """

    layout: BatchLayout
    slots: int
    weights: int
    workspace: Callable[[int], int]

    def total_bytes(self, windows: int) -> int:
        """Bytes on the device with `windows` windows a batch."""
        return self.weights + self.slots * windows * self.layout.window_bytes() + self.workspace(windows)


def fit_windows(footprint: Footprint, limit: int | None, most: int) -> int:
    """Return the largest number of windows a batch, up to `most`, that fits into `limit` bytes.

    Raises
    ------
    MemoryLimitError
        If not even one window fits.
    """
    if limit is None:
        return most
    for windows in range(most, 0, -1):
        if footprint.total_bytes(windows) <= limit:
            return windows
    least = -(-footprint.total_bytes(1) // MEGABYTE)
    raise MemoryLimitError(
        f"the memory limit of {limit // MEGABYTE} MB is too small: the smallest batch, of {footprint.layout.window} "
        f"slices, takes {least} MB on the GPU; give --memory-limit {least} or more, or compute on the CPU with "
        "--device cpu"
    )
