"""What goes into and out of a network besides its own time: the same volume for all, and the way from file to file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssn.benchmarks.phantom import write_phantom
from ssn.core.intensity import normalise
from ssn.core.pose import find_brain
from ssn.core.volume import Volume, read_volume, write_map

Shape = tuple[int, int, int]
STANDARD: Shape = (192, 192, 96)  # the published method's window
NATIVE: Shape = (240, 240, 155)  # BraTS


@dataclass(frozen=True)
class Scan:
    """The volume that everything is measured on.

    Attributes
    ----------
    path : NIfTI, 1 mm voxels
    """

    path: Path
    shape: Shape


def make_scan(folder: Path, shape: Shape = STANDARD) -> Scan:
    """Write the phantom's middle: every slice of the standard shape has brain in it."""
    return Scan(write_phantom(folder / f"phantom-{shape[2]}.nii.gz", shape=shape), shape)


def network_input(volume: Volume, shape: Shape) -> NDArray[np.float32]:
    """Normalise a volume and pad it with background to what a 3D network takes, (1, 1, X, Y, Z)."""
    values = normalise(volume, find_brain(volume))
    padding = [(0, wanted - side) for side, wanted in zip(values.shape, shape, strict=True)]
    return np.ascontiguousarray(np.pad(values, padding)[None, None])


def write_residual(values: NDArray[np.float32], output: NDArray[np.float32], volume: Volume, folder: Path) -> None:
    """Write what a 3D network's answer becomes: a map and a mask, the same two files that the slice pipeline writes."""
    x, y, z = volume.data.shape
    residual = np.abs(values[0, 0, :x, :y, :z] - output[0, 0, :x, :y, :z])
    write_map(folder / "anomaly.nii.gz", residual, volume, overwrite=True)
    write_map(folder / "mask.nii.gz", (residual > 0.5).astype(np.uint8), volume, overwrite=True)


def around_network(scan: Scan, shape: Shape, folder: Path) -> None:
    """Do all of a 3D network's way from file to file but the network: read, normalise, pad, compare, write."""
    volume = read_volume(scan.path)
    values = network_input(volume, shape)
    write_residual(values, np.roll(values, 1, 2), volume, folder)
