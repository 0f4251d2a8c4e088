"""Asymmetric brain-like volumes for tests, made on the spot."""

from pathlib import Path

import nibabel as nib
import numpy as np

SEMI_AXES = np.array([73.0, 91.0, 75.0])  # mm
LESION_AT = np.array([28.0, 31.0, 12.0])  # mm, RAS: right, front, up; no symmetry maps it to itself


def brain_array(zooms=(3.0, 3.0, 3.0), *, lesion=True, radius=16.0, seed=0, turn=None):
    """Return (data, affine): an ellipsoid brain with structure and a bright ball at LESION_AT, background 0.

    `turn`, a rotation (3, 3), tilts the head in its grid; the ball is then at `turn @ LESION_AT`.
    """
    zooms = np.asarray(zooms, float)
    shape = np.ceil((2 * SEMI_AXES + 24) / zooms).astype(int)
    affine = np.diag([*zooms, 1.0])
    affine[:3, 3] = -(shape - 1) / 2 * zooms
    places = [affine[i, i] * np.arange(n) + affine[i, 3] for i, n in enumerate(shape)]
    x, y, z = np.meshgrid(*places, indexing="ij")
    if turn is not None:
        x, y, z = np.einsum("ji,jxyz->ixyz", turn, np.stack([x, y, z]))
    inside = (x / SEMI_AXES[0]) ** 2 + (y / SEMI_AXES[1]) ** 2 + (z / SEMI_AXES[2]) ** 2 < 1
    data = 300 + 60 * np.sin(x / 9) * np.cos(y / 11) + 40 * np.sin(z / 7)
    data += np.random.default_rng(seed).normal(0, 5, shape)
    if lesion:
        ball = sum((p - c) ** 2 for p, c in zip((x, y, z), LESION_AT, strict=True)) < radius**2
        data = np.where(ball, 900, data)
    return (np.maximum(data, 1) * inside).astype(np.float32), affine


def save(path: Path, data, affine, dtype=np.int16, **header):
    image = nib.Nifti1Image(np.asarray(data).astype(dtype), affine)
    image.header.set_xyzt_units("mm")
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def brain_file(path: Path, zooms=(3.0, 3.0, 3.0), **options) -> Path:
    return save(path, *brain_array(zooms, **options))
