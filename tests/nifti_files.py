"""Small NIfTI files for tests, whole or with one header field overwritten."""

import struct
import warnings

import nibabel as nib
import numpy as np
import pytest

from ssn.core.errors import VolumeError
from ssn.core.volume import read_volume

SHAPE = (9, 11, 13)
OBLIQUE = np.array([[0.9, 0.2, -0.1, -40.0], [-0.15, 1.1, 0.3, 12.5], [0.05, -0.25, 1.8, 7.0], [0, 0, 0, 1]])
# Byte offsets of NIfTI-1 fields (nifti1.h).
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE = 40, 70, 76, 108, 112
QFORM_CODE, SFORM_CODE, QUATERN, SROW, MAGIC = 252, 254, 256, 280, 344


def scan(shape=SHAPE, dtype=np.int16):
    return np.random.default_rng(7).integers(1, 100, shape).astype(dtype)


def save(path, array, affine=None, kind=nib.Nifti1Image, **fields):
    image = kind(array, np.eye(4) if affine is None else affine)
    for field, value in fields.items():
        image.header[field] = value
    nib.save(image, path)
    return path


def files_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


def nifti_bytes(array=None, affine=None):
    image = nib.Nifti1Image(scan() if array is None else array, np.eye(4) if affine is None else affine)
    image.header["scl_slope"], image.header["scl_inter"] = 1, 0
    return image.to_bytes()


def patched(offset, layout, *values, plain=None):
    """Return a small valid `.nii` with one header field overwritten."""
    changed = bytearray(plain or nifti_bytes())
    struct.pack_into("<" + layout, changed, offset, *values)
    return bytes(changed)


def refused(path, content=None, **limits):
    """Return the message with which a file is refused, after checking that it is one line naming the file."""
    if content is not None:
        path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(VolumeError) as caught:
            read_volume(path, **limits)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "; " in message  # what is wrong; what to do
    assert "\n" not in message
    return message
