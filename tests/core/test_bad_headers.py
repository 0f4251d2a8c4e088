"""A volume that is not one brain in one place is refused by one clear line: its header, its frames, its voxels."""

import numpy as np
import pytest
from nifti_files import (
    DATATYPE,
    DIM,
    PIXDIM,
    QFORM_CODE,
    QUATERN,
    SHAPE,
    SLOPE,
    SROW,
    VOX_OFFSET,
    nifti_bytes,
    patched,
    refused,
    scan,
)

from ssn.core.volume import read_volume

# --- not one volume


def test_several_frames_are_counted_and_refused(nii):
    message = refused(nii, nifti_bytes(scan((9, 9, 9, 5))))
    assert "holds 5 volumes" in message
    assert "fslroi" in message
    assert "holds 3 volumes" in refused(nii, nifti_bytes(scan((9, 9, 9, 1, 3))))


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 1), (1, 64, 64), (64, 64, 1, 1)])
def test_a_2d_slice_is_refused(nii, shape):
    assert "2D slice" in refused(nii, nifti_bytes(scan(shape)))


def test_an_axis_shorter_than_eight_voxels_is_refused(nii):
    assert "fewer than 8 voxels" in refused(nii, nifti_bytes(scan((12, 7, 12))))


@pytest.mark.parametrize("dim", [(0, 12, 12, 12), (8, 12, 12, 12), (3, 12, 0, 12), (3, -1, 12, 12), (-3, 12, 12, 12)])
def test_impossible_dimensions_are_refused(nii, dim):
    assert "impossible dimensions" in refused(nii, patched(DIM, "4h", *dim))


# --- not grey values


@pytest.mark.parametrize(
    ("code", "name"),
    [(128, "RGB"), (2304, "RGBA"), (32, "complex"), (1792, "complex"), (1, "1-bit"), (77, "77")],
)
def test_colour_complex_and_unknown_voxels_are_refused(nii, code, name):
    message = refused(nii, patched(DATATYPE, "h", code))
    assert name in message
    assert "not grey values" in message


@pytest.mark.parametrize("value", [0, 5])
def test_a_constant_volume_is_refused_as_it_has_no_brain(nii, value):
    assert "no brain in it" in refused(nii, nifti_bytes(np.full(SHAPE, value, np.int16)))


def test_too_many_nonfinite_voxels_are_refused_and_their_share_is_said(nii):
    array = scan(dtype=np.float32)
    array[:, :, :3] = np.nan
    assert "23.1% of its voxels are NaN" in refused(nii, nifti_bytes(array))


def test_a_slope_that_overflows_is_refused_as_nonfinite(nii):
    assert "voxels are NaN or infinite" in refused(nii, patched(SLOPE, "2f", 3e38, 0))


@pytest.mark.parametrize("inter", [np.nan, np.inf])
def test_a_nonfinite_intercept_is_refused(nii, inter):
    assert "scl_inter" in refused(nii, patched(SLOPE, "2f", 2, inter))


@pytest.mark.parametrize("slope", [0, np.nan, np.inf])
def test_a_slope_of_zero_or_nan_means_unscaled(nii, slope):
    nii.write_bytes(patched(SLOPE, "2f", slope, 3))
    np.testing.assert_array_equal(read_volume(nii).data, scan())


@pytest.mark.parametrize("offset", [0, 300, 352.5, 1e30, np.nan, np.inf, -352])
def test_voxels_cannot_begin_just_anywhere(nii, offset):
    assert "cannot begin at byte" in refused(nii, patched(VOX_OFFSET, "f", offset))


# --- not placed in space


@pytest.mark.parametrize("size", [0, -1, np.nan, np.inf])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_zero_negative_or_nonfinite_voxel_size_is_refused(nii, size, axis):
    assert "pixdim" in refused(nii, patched(PIXDIM + 4 * axis, "f", size))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("element", range(12))
def test_a_nonfinite_affine_is_refused(nii, element, value):
    assert "NaN or infinity" in refused(nii, patched(SROW + 4 * element, "f", value))


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((3, 4)),
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]],
        [[1, 1, 0, 0], [0, 1e-5, 0, 0], [0, 0, 1, 0]],
        np.full((3, 4), 3e38),
    ],
    ids=["zero", "two equal columns", "nearly flat", "huge"],
)
def test_a_singular_affine_is_refused(nii, rows):
    assert "singular" in refused(nii, patched(SROW, "12f", *np.ravel(rows)))


def test_a_quaternion_longer_than_one_is_refused(nii):
    by_qform = patched(QFORM_CODE, "2h", 1, 0)
    assert "qform is not a rotation" in refused(nii, patched(QUATERN, "3f", 1, 1, 1, plain=by_qform))
    assert "NaN or infinity" in refused(nii, patched(QUATERN, "3f", np.nan, 0, 0, plain=by_qform))


@pytest.mark.parametrize("size", [0.1, 11.0, 1000.0])
def test_voxels_outside_a_fifth_of_a_millimetre_to_a_centimetre_are_refused(nii, size):
    message = refused(nii, nifti_bytes(affine=np.diag([1, size, 1, 1])))
    assert f"{size:g}" in message
    assert "outside 0.2 to 10" in message


def test_a_volume_in_metres_that_means_millimetres_is_refused_with_the_unit_named(nii):
    assert "units of 1000 mm" in refused(nii, patched(123, "B", 1))
