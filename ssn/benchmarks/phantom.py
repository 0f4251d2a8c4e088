"""A brain-shaped volume for timing: its numbers mean nothing, its size and occupancy are a brain's."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

_SEMI_AXES = (73.0, 91.0, 75.0)  # mm


def write_phantom(path: Path, zoom: float = 1.0, shape: tuple[int, int, int] | None = None) -> Path:
    """Write an ellipsoid with structure and noise as NIfTI.

    Parameters
    ----------
    zoom : voxel size, mm
    shape : voxels; the ellipsoid lies in the middle and may be cut off. As large as it needs if not given.
    """
    sides = list(shape or (int(np.ceil((2 * axis + 20) / zoom)) for axis in _SEMI_AXES))
    affine = np.diag([zoom, zoom, zoom, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * zoom for n in sides]
    x, y, z = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * zoom for n in sides], indexing="ij", sparse=True)
    inside = sum((p / axis) ** 2 for p, axis in zip((x, y, z), _SEMI_AXES, strict=True)) < 1
    values = 300 + 60 * np.sin(x / 9) * np.cos(y / 11) + 40 * np.sin(z / 7)
    values = values + np.random.default_rng(0).normal(0, 8, sides)
    image = nib.Nifti1Image((np.maximum(values, 1) * inside).astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path
