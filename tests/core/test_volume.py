"""Reading a volume gives what nibabel gives, in canonical order; a map written from it lies on it."""

import gzip
import hashlib
import itertools
import re

import nibabel as nib
import numpy as np
import pytest
from nifti_files import OBLIQUE, PIXDIM, QFORM_CODE, SHAPE, patched, save, scan

from ssn.core.volume import from_canonical, read_volume, write_map

ALL_48_ORIENTATIONS = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def nibabel_canonical(path):
    return nib.as_closest_canonical(nib.load(path))


@pytest.mark.parametrize(("axes", "signs"), ALL_48_ORIENTATIONS)
def test_a_map_in_any_of_the_48_orientations_returns_to_the_voxels_it_came_from(tmp_path, axes, signs):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for own_axis, (world_axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[world_axis, own_axis] = sign * (1.0, 1.25, 1.5)[own_axis]
    affine[:3, 3] = (-5.0, 3.5, 20.0)
    original = scan()
    image = nib.Nifti1Image(original, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=4)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "in.nii")

    volume = read_volume(tmp_path / "in.nii")
    expected = nibabel_canonical(tmp_path / "in.nii")
    np.testing.assert_array_equal(volume.data, expected.get_fdata())
    np.testing.assert_allclose(volume.zooms, expected.header.get_zooms())
    assert volume.data.flags.c_contiguous

    write_map(tmp_path / "out.nii.gz", volume.data, volume)
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(written.get_fdata(), original)
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "in.nii").affine)
    for form in ("get_qform", "get_sform"):
        was, was_code = getattr(nib.load(tmp_path / "in.nii"), form)(coded=True)
        now, now_code = getattr(written, form)(coded=True)
        np.testing.assert_array_equal(now, was)
        assert now_code == was_code
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert written.header.get_zooms() == nib.load(tmp_path / "in.nii").header.get_zooms()


@pytest.mark.parametrize(("axes", "signs"), ALL_48_ORIENTATIONS[::7])
def test_from_canonical_brings_a_volume_back_as_it_lay(tmp_path, axes, signs):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[list(axes)] * signs
    volume = read_volume(save(tmp_path / "in.nii", scan(), affine))
    np.testing.assert_array_equal(from_canonical(volume.data, volume), scan(dtype=np.float32))


def test_an_oblique_volume_is_read_and_its_map_has_the_same_affine(tmp_path):
    path = save(tmp_path / "oblique.nii.gz", scan(), OBLIQUE)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
    np.testing.assert_allclose(volume.zooms, np.linalg.norm(OBLIQUE[:3, :3], axis=0), rtol=1e-6)
    write_map(tmp_path / "map.nii.gz", volume.data, volume)
    np.testing.assert_array_equal(nib.load(tmp_path / "map.nii.gz").affine, nib.load(path).affine)


def test_a_left_handed_affine_is_fine(tmp_path):
    volume = read_volume(save(tmp_path / "left.nii", scan(), np.diag([-1.0, 1, 1, 1])))
    np.testing.assert_array_equal(volume.data, scan()[::-1])


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (1, 4), (9, 9)], ids=str)
def test_sform_comes_before_qform_before_voxel_sizes_as_in_nibabel(tmp_path, codes):
    image = nib.Nifti1Image(scan(), None)
    image.header.set_zooms((1.0, 1.5, 2.0))
    image.header.set_qform(np.array([[0, -1.5, 0, 1], [1, 0, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]]), code=1)
    image.header.set_sform(OBLIQUE, code=1)
    image.header["qform_code"], image.header["sform_code"] = codes
    image.header["vox_offset"] = 352
    path = tmp_path / "forms.nii"
    path.write_bytes(image.header.binaryblock + bytes(4) + scan().tobytes(order="F"))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
    write_map(tmp_path / "map.nii", volume.data, volume)
    written = nib.load(tmp_path / "map.nii")
    np.testing.assert_array_equal(written.affine, volume.affine)
    expected_codes = (0, 0) if codes == (9, 9) else codes  # invalid codes mean "unknown" to every reader
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == expected_codes


@pytest.mark.parametrize(("stored", "meant"), [(0, 1), (7, 1), (1, 1), (-1, -1)])
def test_a_qform_says_by_its_qfac_how_the_last_axis_runs_and_what_is_no_qfac_counts_as_1(tmp_path, stored, meant):
    path = save(tmp_path / "qform.nii", scan(), np.diag([1, 1, 2, 1]))
    path.write_bytes(patched(PIXDIM, "f", stored, plain=patched(QFORM_CODE, "2h", 1, 0, plain=path.read_bytes())))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.affine[:3, :3], np.diag([1, 1, 2 * meant]))
    write_map(tmp_path / "map.nii", volume.data, volume)
    np.testing.assert_array_equal(nib.load(tmp_path / "map.nii").affine, volume.affine)


def test_slope_and_intercept_are_applied(tmp_path):
    image = nib.Nifti1Image(scan(), np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    nib.save(image, tmp_path / "scaled.nii.gz")
    expected = nib.load(tmp_path / "scaled.nii.gz").get_fdata()
    np.testing.assert_allclose(read_volume(tmp_path / "scaled.nii.gz").data, expected, rtol=1e-6)


def test_a_large_intercept_on_32_bit_integers_does_not_eat_the_digits(tmp_path):
    header = nib.Nifti1Header()
    stored = scan(dtype=np.int32) + 2**30
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int32)
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = 1, -(2.0**30), 352
    path = tmp_path / "offset.nii"
    path.write_bytes(header.binaryblock + bytes(4) + stored.tobytes(order="F"))
    np.testing.assert_array_equal(read_volume(path).data, nibabel_canonical(path).get_fdata())
    assert read_volume(path).data.max() == 99


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_every_number_type_in_either_byte_order_and_nifti_version_is_read(tmp_path, kind, order, dtype):
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(dtype))
    image = kind(scan(dtype=dtype), OBLIQUE, header)
    nib.save(image, tmp_path / "volume.nii.gz")
    volume = read_volume(tmp_path / "volume.nii.gz")
    assert nib.load(tmp_path / "volume.nii.gz").header.endianness == order
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data, scan())
    write_map(tmp_path / "map.nii.gz", volume.data, volume)
    written = nib.load(tmp_path / "map.nii.gz")
    np.testing.assert_array_equal(written.affine, volume.affine)
    np.testing.assert_array_equal(written.get_fdata(), scan())
    assert isinstance(written, kind)


@pytest.mark.parametrize("extra", [(1,), (1, 1), (1, 1, 1, 1)])
def test_four_dimensions_with_one_frame_give_a_3d_map(tmp_path, extra):
    path = save(tmp_path / "frame.nii.gz", scan().reshape(*SHAPE, *extra), OBLIQUE)
    volume = read_volume(path)
    assert volume.data.shape == SHAPE
    write_map(tmp_path / "map.nii.gz", volume.data, volume)
    assert nib.load(tmp_path / "map.nii.gz").shape == SHAPE
    np.testing.assert_array_equal(nib.load(tmp_path / "map.nii.gz").affine, nib.load(path).affine)


def test_compression_is_read_from_the_content_not_from_the_name(tmp_path):
    packed, plain = save(tmp_path / "a.nii.gz", scan()), save(tmp_path / "b.nii", scan())
    packed.rename(tmp_path / "really_packed.nii")
    plain.rename(tmp_path / "really_plain.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "really_packed.nii").data, scan())
    np.testing.assert_array_equal(read_volume(tmp_path / "really_plain.nii.gz").data, scan())


def test_a_gzip_of_several_members_is_read(tmp_path):
    whole = save(tmp_path / "a.nii", scan()).read_bytes()
    path = tmp_path / "members.nii.gz"
    path.write_bytes(gzip.compress(whole[:700]) + gzip.compress(whole[700:]) + bytes(100))
    np.testing.assert_array_equal(read_volume(path).data, scan())


def test_header_extensions_are_skipped_and_do_not_reach_the_map(tmp_path):
    image = nib.Nifti1Image(scan(), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe " * 500))
    image.header["descrip"] = b"Jane Doe"
    nib.save(image, tmp_path / "in.nii")
    volume = read_volume(tmp_path / "in.nii")
    np.testing.assert_array_equal(volume.data, scan())
    write_map(tmp_path / "map.nii", volume.data, volume)
    assert b"Jane" not in (tmp_path / "map.nii").read_bytes()


@pytest.mark.parametrize("name", ["volume.nii", "volume.nii.gz"])
def test_the_hash_is_that_of_the_file_on_disk(tmp_path, name):
    path = save(tmp_path / name, scan())
    assert read_volume(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_few_nonfinite_voxels_become_background_and_are_counted(tmp_path):
    array = scan(dtype=np.float32)
    array[[0, -1]] = array[:, [0, -1]] = -1024  # not 0: there 0 would be brain
    array[0, 0, :3] = (np.nan, np.inf, -np.inf)
    array[5, 5, 5] = np.nan
    volume = read_volume(save(tmp_path / "nan.nii.gz", array))
    assert volume.nonfinite_voxels == 4
    np.testing.assert_array_equal(volume.data[0], -1024)
    assert volume.data[5, 5, 5] == -1024
    np.testing.assert_array_equal(volume.data[6:], array[6:])


def _forms(path, qform, sform):
    image = nib.Nifti1Image(scan(), np.eye(4))
    for put, (affine, code) in ((image.set_qform, qform), (image.set_sform, sform)):
        put(np.array(affine), code)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("qform", "sform", "doubt"),
    [
        ((np.eye(4), 1), (np.eye(4), 4), None),
        ((np.eye(4), 0), (np.eye(4), 2), None),
        ((np.eye(4), 1), (OBLIQUE, 0), None),
        ((np.eye(4), 0), (np.eye(4), 0), "left and right may be swapped"),
        ((np.diag([-1, 1, 1, 1]), 1), (np.eye(4), 1), r"sform \(RAS\) and qform \(LAS\) contradict"),
        ((np.diag([1, 1, 1, 1]), 1), (np.diag([1, 1, 1.1, 1]), 1), "contradict"),
        ((np.diag([1, 1, 1, 1]), 1), (np.diag([1, 1, 1.03, 1]), 1), None),
    ],
)
def test_what_a_header_leaves_open_is_said(tmp_path, qform, sform, doubt):
    doubts = read_volume(_forms(tmp_path / "scan.nii", qform, sform)).doubts
    assert bool(doubts) == (doubt is not None)
    assert doubt is None or re.search(doubt, doubts[0])


@pytest.mark.parametrize(
    ("code", "size", "name"),
    [(1, 0.001, "meter"), (3, 1000, "micron"), (1 | 8, 0.001, "meter"), (2 | 16, 1, "mm")],  # 8, 16: units of time
)
def test_units_other_than_millimetres_are_converted_in_zooms_and_kept_in_the_map(tmp_path, code, size, name):
    path = save(tmp_path / "scan.nii", scan(), np.diag([size, size, 2 * size, 1]), xyzt_units=code)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.zooms, (1, 1, 2), rtol=1e-6)
    write_map(tmp_path / "map.nii", volume.data, volume)
    assert nib.load(tmp_path / "map.nii").header.get_xyzt_units()[0] == name
