"""Which files are volumes to compute, and which two are one."""

import pytest

from ssn.core.errors import OutputError, VolumeError
from ssn.runtime.jobs import find_jobs, find_volumes


def test_of_a_folder_volumes_are_taken_in_order_but_neither_hidden_files_nor_our_outputs(tmp_path):
    # Other systems leave a "._" file beside each that they copy to a stick.
    others = ("._a.nii.gz", ".hidden.nii", "b_anomaly.nii.gz", "b_mask.nii.gz", "b.json", "notes.txt", "nii")
    for name in ("b.nii", "a.nii.gz", "C.NII.GZ", *others):
        (tmp_path / name).touch()
    assert [path.name for path in find_volumes([tmp_path])] == ["C.NII.GZ", "a.nii.gz", "b.nii"]
    asked = tmp_path / "b_mask.nii.gz"
    assert find_volumes([asked]) == [asked], "what is given by its own name is wanted"


def test_a_folder_of_nothing_but_our_outputs_holds_no_volume(tmp_path):
    for name in ("a_anomaly.nii.gz", "a_mask.nii.gz", "._a.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(VolumeError, match=r"holds no \.nii or \.nii\.gz file"):
        find_volumes([tmp_path])


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.nii", "a"), ("a.NII.gz", "a"), ("a.nii.brain.nii.gz", "a.nii.brain"), ("a.nii.gz.nii", "a.nii.gz")],
)
def test_outputs_are_named_by_all_but_the_ending(tmp_path, name, stem):
    assert [job.name for job in find_jobs([tmp_path / name])] == [stem]


def test_one_file_by_two_paths_is_one_volume_and_two_of_one_name_are_refused(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "scan.nii").touch()
    (tmp_path / "link").symlink_to(tmp_path / "x")
    one, other, again = (tmp_path / folder / "scan.nii" for folder in ("x", "y", "link"))
    assert [job.path for job in find_jobs([one, again, one])] == [one]
    with pytest.raises(OutputError, match="same names"):
        find_jobs([one, other])


def test_what_is_not_there_is_still_one_or_two(tmp_path):
    gone = tmp_path / "x" / "gone.nii"
    assert len(find_jobs([gone, gone])) == 1, "that it is not there is said when its turn comes"
    with pytest.raises(OutputError, match="same names"):
        find_jobs([gone, tmp_path / "y" / "gone.nii"])
