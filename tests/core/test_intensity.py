"""Grey values that float32 cannot tell apart are refused; all others are seen alike."""

import nibabel as nib
import numpy as np
import pytest
from brains import brain_array

from ssn.core.errors import VolumeError
from ssn.core.geometry import GridConfig
from ssn.core.slices import cut_slices
from ssn.core.volume import read_volume

DATA, AFFINE = brain_array((4.0, 4.0, 4.0))
INSIDE = DATA > 0
ODD_ONE_OUT = np.where(INSIDE, 100, 0)
ODD_ONE_OUT.flat[DATA.argmax()] = 101


def slices_of(folder, values, *, slope=None, inter=None):
    image = nib.Nifti1Image(values, AFFINE)
    image.header.set_slope_inter(slope, inter)
    path = folder / "scan.nii"
    nib.save(image, path)
    return cut_slices(read_volume(path), GridConfig(), 12).slices


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1.0, 1e9, 1e30])
def test_the_unit_of_grey_values_changes_nothing(tmp_path, scale):
    expected = slices_of(tmp_path, DATA)
    np.testing.assert_allclose(slices_of(tmp_path, DATA * np.float32(scale)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (DATA * np.float32(1e-36), "which no scanner gives"),
        (np.where(DATA > 0, np.sign(DATA - 300) * np.float32(3.3e38), 0).astype(np.float32), "which no scanner gives"),
        (np.where(DATA > 0, DATA + np.float32(2e9), 0).astype(np.float32), "too close together"),
    ],
    ids=["far too small", "far too large", "a large offset"],
)
def test_values_without_contrast_in_single_precision_are_refused(tmp_path, values, reason):
    with pytest.raises(VolumeError, match=rf"scan\.nii: its grey values lie between .*{reason}"):
        slices_of(tmp_path, values)


def test_an_offset_in_the_header_that_swallows_the_image_is_refused(tmp_path):
    with pytest.raises(VolumeError, match="take off an offset"):
        slices_of(tmp_path, DATA.clip(0, 255).astype(np.uint8), slope=1, inter=1e9)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (INSIDE, "100% of its brain have the same value|no more than 1 different values"),
        (ODD_ONE_OUT, "no more than [12] different values"),
        (np.digitize(DATA, [1, 280, 320, 800]), "no more than 4 different values"),
        (np.where(INSIDE & (DATA < 320), 1, DATA / 900), "[5-9].% of its brain have the same value"),
    ],
    ids=["a mask", "a mask with an odd voxel", "a map of labels", "a soft mask"],
)
def test_masks_and_labels_are_no_images(tmp_path, values, reason):
    with pytest.raises(VolumeError, match=rf"scan\.nii: .*({reason}).* not an image; give the image"):
        slices_of(tmp_path, values.astype(np.float32))
