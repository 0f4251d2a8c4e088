"""Lesion masks: read onto their image's grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ssn.core.errors import DataError

_WHOLE = 1e-3  # as near to a whole number as scl_slope brings it


def read_mask(path: Path, shape: tuple[int, ...] | None = None) -> NDArray[np.bool_]:
    """Read a lesion mask (X, Y, Z) in canonical axis order; lesion is where it is above 0.

    Parameters
    ----------
    shape : of its image in canonical axis order; None does not compare

    Raises
    ------
    DataError
        If it cannot be read or is not on its image's grid.
    """
    try:
        image = nib.as_closest_canonical(nib.load(path))
        values = np.squeeze(np.asanyarray(image.dataobj))
        mask = values > 0
    except Exception as error:  # a reader is chosen by the name's end, and raises whatever it likes
        raise DataError(
            f"{path}: the mask cannot be read ({error}); check that it is NIfTI, named .nii.gz if compressed, else .nii"
        ) from error
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise DataError(f"{path}: the mask holds NaN, which says neither lesion nor healthy; set it to 0 or 1")
    if values.dtype.kind == "f" and (soft := values[np.abs(values - np.rint(values)) > _WHOLE]).size:
        raise DataError(
            f"{path}: the mask holds {soft[0]:.3g}, neither lesion nor healthy; set it to 0 or 1 (nearest neighbour "
            "moves masks as they are)"
        )
    if shape is not None and mask.shape != shape:
        raise DataError(f"{path}: the mask has shape {mask.shape}, its image {shape}")
    return mask


def unusable_mask(path: Path, inside: NDArray[np.bool_]) -> str | None:
    """Say why nothing can be measured with a lesion mask, or None; `inside` (n,) is the mask at the brain's voxels."""
    if not inside.any():
        return f"{path}: holds no lesion inside the brain; a healthy volume has no mask at all"
    if inside.all():
        return f"{path}: leaves no healthy voxel in the brain; mark the lesion, not the brain"
    return None
