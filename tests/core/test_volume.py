"""Reading a volume gives what nibabel gives, in canonical order; a written map lies on its input."""

import gzip
import hashlib
import itertools
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ssn.core.atomic import atomic_path, write_text_atomic
from ssn.core.errors import OutputError
from ssn.core.volume import from_canonical, read_volume, to_canonical, write_map

SHAPE = (9, 11, 13)
OBLIQUE = np.array([[0.9, 0.2, -0.1, -40.0], [-0.15, 1.1, 0.3, 12.5], [0.05, -0.25, 1.8, 7.0], [0, 0, 0, 1]])
ALL_48_ORIENTATIONS = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def scan(shape=SHAPE, dtype=np.int16):
    return np.random.default_rng(7).integers(1, 100, shape).astype(dtype)


def save(path, array, affine=None, kind=nib.Nifti1Image, **fields):
    image = kind(array, np.eye(4) if affine is None else affine)
    for field, value in fields.items():
        image.header[field] = value
    nib.save(image, path)
    return path


def nibabel_canonical(path):
    return nib.as_closest_canonical(nib.load(path))


def files_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


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
def test_to_canonical_and_from_canonical_are_inverse(tmp_path, axes, signs):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[list(axes)] * signs
    volume = read_volume(save(tmp_path / "in.nii", scan(), affine))
    own = scan(dtype=np.float32)
    np.testing.assert_array_equal(to_canonical(own, volume), volume.data)
    np.testing.assert_array_equal(from_canonical(volume.data, volume), own)


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
        ((np.diag([1, 1, 1, 1]), 1), (np.diag([1, 1, 2, 1]), 1), "contradict"),
    ],
)
def test_what_a_header_leaves_open_is_said(tmp_path, qform, sform, doubt):
    doubts = read_volume(_forms(tmp_path / "scan.nii", qform, sform)).doubts
    assert bool(doubts) == (doubt is not None)
    assert doubt is None or re.search(doubt, doubts[0])


def test_units_other_than_millimetres_are_converted_in_zooms_and_kept_in_the_map(tmp_path):
    path = save(tmp_path / "metres.nii", scan(), np.diag([0.001, 0.001, 0.002, 1]), xyzt_units=1)
    volume = read_volume(path)
    np.testing.assert_allclose(volume.zooms, (1, 1, 2), rtol=1e-6)
    write_map(tmp_path / "map.nii", volume.data, volume)
    assert nib.load(tmp_path / "map.nii").header.get_xyzt_units()[0] == "meter"


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("name", ["map.nii", "map.nii.gz", "MAP.NII.GZ"])
def test_a_map_keeps_its_number_type_unscaled(tmp_path, dtype, name):
    volume = read_volume(save(tmp_path / "in.nii", scan()))
    write_map(tmp_path / name, volume.data.astype(dtype), volume)
    written = nib.load(tmp_path / name)
    assert written.get_data_dtype() == dtype
    assert written.header.get_slope_inter() in ((1.0, 0.0), (None, None))
    np.testing.assert_array_equal(np.asarray(written.dataobj), scan())


def test_the_same_map_gives_the_same_bytes_under_any_name(tmp_path):
    volume = read_volume(save(tmp_path / "in.nii", scan()))
    write_map(tmp_path / "one.nii.gz", volume.data, volume)
    write_map(tmp_path / "two.nii.gz", volume.data, volume)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


def test_a_written_map_can_be_read_again(tmp_path):
    volume = read_volume(save(tmp_path / "in.nii", scan(), OBLIQUE))
    write_map(tmp_path / "map.nii.gz", volume.data, volume)
    again = read_volume(tmp_path / "map.nii.gz")
    np.testing.assert_array_equal(again.data, volume.data)
    np.testing.assert_array_equal(again.affine, volume.affine)


def test_a_map_of_another_shape_or_type_is_a_mistake_of_the_caller(tmp_path):
    volume = read_volume(save(tmp_path / "in.nii", scan()))
    for wrong in (volume.data[1:], volume.data.astype(np.float64)):
        with pytest.raises(ValueError, match="map must be float32 or uint8"):
            write_map(tmp_path / "map.nii", wrong, volume)


def refused_write(path, volume, **options):
    with pytest.raises(OutputError) as caught:
        write_map(path, volume.data, volume, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_an_existing_map_is_not_overwritten_without_force(tmp_path):
    volume = read_volume(save(tmp_path / "in.nii", scan()))
    (tmp_path / "map.nii.gz").write_text("precious")
    assert "use --force" in refused_write(tmp_path / "map.nii.gz", volume)
    assert (tmp_path / "map.nii.gz").read_text() == "precious"
    write_map(tmp_path / "map.nii.gz", volume.data, volume, overwrite=True)
    np.testing.assert_array_equal(nib.load(tmp_path / "map.nii.gz").get_fdata(), scan())
    assert files_in(tmp_path) == ["in.nii", "map.nii.gz"]


def test_the_input_is_never_overwritten_not_even_with_force(tmp_path):
    path = save(tmp_path / "in.nii", scan())
    before = path.read_bytes()
    assert "is the input itself" in refused_write(path, read_volume(path), overwrite=True)
    assert path.read_bytes() == before


def test_a_map_can_only_be_written_where_there_is_a_folder_and_with_a_nifti_suffix(tmp_path):
    volume = read_volume(save(tmp_path / "in.nii", scan()))
    (tmp_path / "folder.nii").mkdir()
    assert "does not exist" in refused_write(tmp_path / "missing" / "map.nii", volume)
    assert "cannot be written" in refused_write(tmp_path / "in.nii" / "map.nii", volume)
    assert "is a folder" in refused_write(tmp_path / "folder.nii", volume, overwrite=True)
    assert "end the name in .nii.gz" in refused_write(tmp_path / "map.png", volume)
    assert files_in(tmp_path) == ["folder.nii", "in.nii"]


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not bind root")
def test_a_read_only_folder_or_file_is_respected(tmp_path):
    volume = read_volume(save(tmp_path / "in.nii", scan()))
    kept = tmp_path / "map.nii"
    kept.write_text("precious")
    kept.chmod(0o444)
    assert "is read-only" in refused_write(kept, volume, overwrite=True)
    tmp_path.chmod(0o555)
    assert "cannot be written" in refused_write(tmp_path / "new.nii", volume)
    tmp_path.chmod(0o755)


def test_a_full_disk_halfway_leaves_no_file_behind(tmp_path, monkeypatch):
    volume = read_volume(save(tmp_path / "in.nii", scan()))

    def disk_full(file, *_):
        file.write(b"half a header")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssn.core.volume._write_nifti", disk_full)
    for name in ("map.nii", "map.nii.gz"):
        assert "No space left on device" in refused_write(tmp_path / name, volume)
    assert files_in(tmp_path) == ["in.nii"]


def test_a_failure_of_any_kind_keeps_the_previous_file_and_removes_the_temporary_one(tmp_path):
    target = tmp_path / "result.json"
    write_text_atomic(target, "first\n")

    def write_and_fail(failure):
        with atomic_path(target, overwrite=True) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".json"
            temporary.write_text("half")
            raise failure

    for failure in (RuntimeError("bug"), KeyboardInterrupt()):
        with pytest.raises(type(failure)):
            write_and_fail(failure)
    with pytest.raises(OutputError, match=r"result\.json: cannot be written"):
        write_and_fail(OSError("no"))
    assert target.read_text() == "first\n"
    assert files_in(tmp_path) == ["result.json"]


def test_text_is_written_whole_and_only_replaced_on_request(tmp_path):
    target = tmp_path / "scores.csv"
    write_text_atomic(target, "naïve,1\n")
    with pytest.raises(OutputError, match="--force"):
        write_text_atomic(target, "other")
    write_text_atomic(target, "μ\n", overwrite=True)
    assert target.read_bytes() == "μ\n".encode()
    with pytest.raises(OutputError, match="not a file name"):
        write_text_atomic(Path("/"), "x")
    assert files_in(tmp_path) == ["scores.csv"]


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path):
    target = tmp_path / ("ü" * 120 + ".nii.gz")
    volume = read_volume(save(tmp_path / "in.nii", scan()))
    write_map(target, volume.data, volume)
    assert target.exists()
