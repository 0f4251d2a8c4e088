"""Voxels whose axes are not at right angles, and voxel sizes that a header states twice."""

import nibabel as nib
import numpy as np
import pytest
from brains import brain_array

from ssn.core.volume import read_volume

DATA, AFFINE = brain_array((3.0, 4.0, 5.0))


def read(folder, affine, change=lambda header: None, code=1):
    image = nib.Nifti1Image(DATA, affine)
    image.set_qform(None if code else affine, 0)
    image.set_sform(affine, 1)
    change(image.header)
    nib.save(image, folder / "scan.nii")
    return read_volume(folder / "scan.nii")


def turned(degrees):
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ AFFINE


@pytest.mark.parametrize("degrees", [0, 17, 44])
def test_a_box_has_the_product_of_its_edges_however_it_lies(tmp_path, degrees):
    volume = read(tmp_path, turned(degrees))
    assert volume.voxel_ml == pytest.approx(0.06, rel=1e-5)
    assert volume.doubts == ()


def test_a_sheared_voxel_has_the_volume_of_its_determinant_and_is_doubted(tmp_path):
    shear = np.eye(4)
    shear[1, 2] = 0.4
    volume = read(tmp_path, shear @ AFFINE)
    assert np.prod(volume.zooms) > 63
    assert volume.voxel_ml == pytest.approx(0.06, rel=1e-5)
    (doubt,) = volume.doubts
    assert "not at right angles (a voxel has 93% of the product of its edges)" in doubt


def test_a_voxel_size_that_contradicts_the_sform_is_doubted_without_a_qform_too(tmp_path):
    def double(header):
        header["pixdim"][1:4] = 6, 8, 10

    (doubt,) = read(tmp_path, AFFINE, double).doubts
    assert "(pixdim, 6 x 8 x 10) and its sform (3 x 4 x 5) contradict each other" in doubt
