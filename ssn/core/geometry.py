"""Separable linear geometry: one small matrix an axis brings a volume in, and a map out again.

Cropping, resizing, upsampling and Gaussian smoothing are linear and act on each axis alone, so a chain of
them is one matrix an axis (METHOD.md, Scoring). Axes are those of the closest-canonical (RAS+) voxel grid; the
angle by which an oblique scan departs from it is not resampled away: the head was positioned in the
scanner's grid, and the map comes back on exactly the voxels that were read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ssn.core.brain_box import EVERYWHERE, Box

Matrix = NDArray[np.float32]
Border = Literal["symmetric", "zero"]
_REACH = 3.0  # sigmas: a voxel so far outside of the cells has no value
_SLAB = 16  # native voxels: some MB of a map
ThickSlice = Literal["slab", "middle"]  # made of a window of slices: their mean, or the middle one
_Real = TypeVar("_Real", np.float32, np.float64)


@dataclass(frozen=True)
class AxisMap:
    """Where a native axis lies in the canonical grid: canonical index = scale * native index + offset.

    Attributes
    ----------
    native : int
        Number of native voxels.
    scale : float
        Canonical voxels (1 mm) a native voxel; positive.
    offset : float
        Canonical index of the centre of native voxel 0.
    """

    native: int
    scale: float
    offset: float


def inward_matrix(axis: AxisMap, start: int, stop: int) -> Matrix:
    """Matrix that resamples a native axis to the canonical indices `start` to `stop` - 1.

    Linear interpolation; where native voxels are smaller than canonical ones, the triangle widens to a
    canonical voxel so that no sample is skipped. Beyond the outer voxels' faces there is background, 0.

    Returns
    -------
    (stop - start, axis.native) float32
    """
    places = (np.arange(start, stop) - axis.offset) / axis.scale
    reach = max(1.0, 1.0 / axis.scale)
    distance = np.abs(places.clip(0, axis.native - 1)[:, None] - np.arange(axis.native)[None, :])
    weights = (1 - distance / reach).clip(0, None)
    weights /= weights.sum(1, keepdims=True)
    weights[(places < -0.5) | (places > axis.native - 0.5)] = 0
    return weights.astype(np.float32)


def row_means(matrix: Matrix, count: int) -> Matrix:
    """(R / count, C) means of each `count` rows: resampling and averaging at once."""
    return matrix.reshape(-1, count, matrix.shape[1]).mean(1)


def _linear_rows(places: NDArray[np.floating], size: int) -> NDArray[np.float64]:
    """Rows that interpolate linearly at `places` in an axis of `size` samples, held constant beyond its ends."""
    distance = np.abs(places.clip(0, size - 1)[:, None] - np.arange(size)[None, :])
    return (1 - distance).clip(0, None)


def upsampling_matrix(size: int, cells: int) -> NDArray[np.float64]:
    """(size, cells) half-pixel linear interpolation from `cells` to `size` samples (torch's, align_corners off)."""
    return _linear_rows((np.arange(size) + 0.5) * cells / size - 0.5, cells)


def gaussian_matrix(size: int, sigma: float, border: Border = "symmetric") -> NDArray[np.float64]:
    """(size, size) Gaussian of `sigma` samples, as `scipy.ndimage.gaussian_filter1d` computes it.

    Beyond its ends the axis is mirrored, scipy's default `reflect`, or `zero`, its `constant`.
    """
    if sigma <= 0:
        return np.eye(size)
    radius = int(4 * sigma + 0.5)
    steps = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (steps / sigma) ** 2)
    kernel /= kernel.sum()
    places = np.arange(size)[:, None] + steps[None, :]
    weights = np.broadcast_to(kernel, places.shape)
    if border == "zero":
        weights = weights * ((places >= 0) & (places < size))
    # Symmetric borders: position p of the endless mirrored axis is sample p of 0..size-1..0.
    places = places % (2 * size)
    places = np.where(places >= size, 2 * size - 1 - places, places)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], places), weights)
    return matrix


def outward_matrix(axis: AxisMap, start: int, stop: int, cells: int, sigma: float) -> Matrix:
    """Matrix from `cells` map values over canonical `start` to `stop` to the native axis.

    It is interpolation to native voxels times Gaussian times upsampling: smoothing, un-crop and resampling at once.
    Voxels farther outside of the cells than the Gaussian reaches get 0.

    Parameters
    ----------
    sigma : float
        Of the Gaussian, in canonical voxels (mm).

    Returns
    -------
    (axis.native, cells) float32
    """
    size = stop - start
    places = axis.scale * np.arange(axis.native) + axis.offset - start
    matrix = _linear_rows(places, size) @ gaussian_matrix(size, sigma) @ upsampling_matrix(size, cells)
    beyond = 0.5 + _REACH * sigma
    matrix[(places < -beyond) | (places > size - 1 + beyond)] = 0
    return matrix.astype(np.float32)


def apply_separable(
    volume: NDArray[_Real], matrices: tuple[NDArray[_Real], NDArray[_Real], NDArray[_Real]]
) -> NDArray[_Real]:
    """Apply one matrix an axis: (A, B, C) with matrices (a, A), (b, B), (c, C) gives (a, b, c).

    The axis that shrinks most goes first, so that the others have less to do.
    """
    order = sorted(range(3), key=lambda axis: matrices[axis].shape[0] / matrices[axis].shape[1])
    for axis in order:
        matrix = matrices[axis]
        if axis == 0:
            flat = np.ascontiguousarray(volume).reshape(volume.shape[0], -1)
            volume = (matrix @ flat).reshape(-1, *volume.shape[1:])
        elif axis == 1:
            volume = np.matmul(matrix, volume)
        else:
            volume = np.matmul(volume, matrix.T)
    return volume


def _as_slices(volume: NDArray[np.float32], x: Matrix, y: Matrix, z: Matrix) -> NDArray[np.float32]:
    """Apply one matrix an axis to (X, Y, Z): axial slices (z, y, x), without a copy to bring the axes into order."""
    columns = np.matmul(np.matmul(volume, z.T).swapaxes(1, 2), y.T)  # (X, z, y)
    return (columns.reshape(len(columns), -1).T @ x.T).reshape(len(z), len(y), len(x))


@dataclass(frozen=True)
class GridConfig:
    """The canonical grid (METHOD.md, Input).

    Attributes
    ----------
    plane : int
        In-plane size, voxels of 1 mm. A multiple of 16, so that the encoder's strides divide it.
    depth : int
        Axial extent, voxels of 1 mm; a multiple of `window`.
    window : int
        Slices that are averaged into one.
    paper : bool
        The fixed window of the published figures instead of the whole brain in a standard pose: no scaling,
        axial slices 24 to 120 of the registered volume, centred crop in the plane.
    """

    plane: int = 192
    depth: int = 192
    window: int = 3
    paper: bool = False

    def __post_init__(self) -> None:
        if min(self.plane, self.depth, self.window) < 1 or self.plane % 16 or self.depth % self.window:
            raise ValueError(f"grid {self}: plane must be a multiple of 16 and depth of the window")

    @property
    def windows(self) -> int:
        """Number of slice windows over the full depth."""
        return self.depth // self.window


PAPER_GRID = GridConfig(plane=192, depth=96, window=3, paper=True)


@dataclass(frozen=True)
class Placement:
    """A volume's place in the canonical grid: one `AxisMap` for each of x, y, z, and the grid."""

    grid: GridConfig
    axes: tuple[AxisMap, AxisMap, AxisMap]

    def _inward(self, first: int, stop: int, box: Box) -> tuple[Matrix, Matrix, Matrix]:
        """Matrices of x, y and z that bring a box of a volume to the slices of windows `first` to `stop` - 1."""
        grid = self.grid
        x, y, z = self.axes
        return (
            inward_matrix(x, 0, grid.plane)[:, box[0]],
            inward_matrix(y, 0, grid.plane)[:, box[1]],
            inward_matrix(z, first * grid.window, stop * grid.window)[:, box[2]],
        )

    def to_canonical(
        self,
        volume: NDArray[np.float32],
        first: int = 0,
        stop: int | None = None,
        thick: ThickSlice | None = None,
        box: Box = EVERYWHERE,
    ) -> NDArray[np.float32]:
        """Resample (X, Y, Z) to the slices of windows `first` to `stop` - 1.

        Parameters
        ----------
        box : what of the native grid `volume` is; outside of it there is 0

        Returns
        -------
        (D, H, W) float32
            Axial slices; rows are y, columns are x. D = (stop - first) * window, or one a window where `thick`.
        """
        window = self.grid.window
        x, y, z = self._inward(first, self.grid.windows if stop is None else stop, box)
        if thick is not None:
            z = row_means(z, window) if thick == "slab" else z[window // 2 :: window]
        return _as_slices(volume, x, y, z)

    def cell_means(
        self, volume: NDArray[np.float32], first: int, stop: int, cells: int, box: Box = EVERYWHERE
    ) -> NDArray[np.float32]:
        """Means (stop - first, cells, cells) over the map cells of (X, Y, Z) in windows `first` to `stop` - 1.

        `box` as in `to_canonical`.
        """
        x, y, z = self._inward(first, stop, box)
        step = self.grid.plane // cells
        return _as_slices(volume, row_means(x, step), row_means(y, step), row_means(z, self.grid.window))

    def native_slabs(
        self, maps: NDArray[np.float32], first: int, sigma: float, box: Box = EVERYWHERE
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Upsample and smooth maps (n, W, G, G) that begin at window `first`, a slab of the native grid at a time.

        A whole map in the native grid is as large as the volume; whoever combines several needs no more than a slab
        of each.

        Parameters
        ----------
        sigma : of the Gaussian, in canonical voxels
        box : what of the native grid is wanted

        Yields
        ------
        Indices along y, counted in the box, and the maps there (n, X, y, Z).
        """
        grid = self.grid
        count, rows, columns = maps.shape[1:]
        x, y, z = (
            outward_matrix(self.axes[0], 0, grid.plane, columns, sigma)[box[0]],
            outward_matrix(self.axes[1], 0, grid.plane, rows, sigma)[box[1]],
            outward_matrix(self.axes[2], first * grid.window, (first + count) * grid.window, count, sigma)[box[2]],
        )
        along_z = np.matmul(maps.transpose(3, 0, 2, 1), z.T)  # (G, n, G, Z)
        for start in range(0, len(y), _SLAB):
            slab = slice(start, min(start + _SLAB, len(y)))
            planes = np.matmul(y[slab], along_z)  # (G, n, y, Z): small enough for a processor's cache
            yield slab, (x @ planes.reshape(columns, -1)).reshape(-1, *planes.shape[1:]).swapaxes(0, 1)

    @property
    def seen(self) -> Box:
        """Native voxels whose centres lie in the grid."""
        sides = []
        for axis, size in zip(self.axes, (self.grid.plane, self.grid.plane, self.grid.depth), strict=True):
            first, last = (ceil((-0.5 - axis.offset) / axis.scale), floor((size - 0.5 - axis.offset) / axis.scale))
            sides.append(slice(max(first, 0), min(last + 1, axis.native)))
        x, y, z = sides
        return x, y, z

    def windows_with(self, box: Box) -> tuple[int, int]:
        """First and one-past-last window with some of a box of the native grid in them."""
        z, window = self.axes[2], self.grid.window
        low = (box[2].start - 0.5) * z.scale + z.offset
        high = (box[2].stop - 0.5) * z.scale + z.offset
        first = max(floor((low + 0.5) / window), 0)
        return first, min(max(ceil((high + 0.5) / window), first + 1), self.grid.windows)
