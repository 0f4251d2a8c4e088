"""A map is written whole, on its input's grid, and over nothing that it should not replace."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nifti_files import OBLIQUE, files_in, save, scan

from ssn.core.atomic import atomic_path, write_text_atomic
from ssn.core.errors import OutputError
from ssn.core.volume import read_volume, write_map


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
