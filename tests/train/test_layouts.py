"""What each layout's reader makes of names and rows that users and their systems leave behind."""

import pytest
from trees import br35h, brats, mask, picture, plain, table, volume

from ssn.core.errors import DataError
from ssn.train.datasets import read_dataset


def test_a_table_as_a_spreadsheet_saves_it_is_read(tmp_path):
    path = tmp_path / "volumes.csv"
    path.write_bytes(b"\xef\xbb\xbfimage,mask,split\r\n a.nii , m.nii , test \r\n")
    (case,) = read_dataset(path).cases
    assert (case.image, case.mask, case.split) == (tmp_path / "a.nii", tmp_path / "m.nii", "test")


def test_a_row_says_the_lesion_its_volume_the_contrast_and_whose_it_is(tmp_path):
    columns = "image,mask,split,volume_ml,template,seed,subject,contrast"
    rows = ("a_T2w.nii,m.nii,test,12.5,mni,7,,", "b_t2.nii,,test,0,mni,7,anna,T1gd", "c.nii,,test,,,,,")
    cases = read_dataset(table(tmp_path, *rows, columns=columns)).cases
    assert [(case.lesion, case.volume_ml, case.subject, case.contrast) for case in cases] == [
        ("lesion", 12.5, "mni-7", "t2"),
        ("", 0.0, "anna", "t1ce"),
        ("", None, "c", None),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"image,split\na.nii,train\n", "has no column mask"),
        (b"image,mask,split\n", "has no row"),
        ("image,mask,split\nä.nii,,train\n".encode("latin-1"), "cannot be read as a table"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, data, message):
    path = tmp_path / "volumes.csv"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"volumes\.csv: {message}"):
        read_dataset(path)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_dataset(path, "csv")


def test_hidden_files_as_some_systems_leave_are_neither_volumes_nor_pictures(tmp_path):
    volume(plain(tmp_path / "3d") / "._h0.nii.gz")
    assert [case.name for case in read_dataset(tmp_path / "3d").cases] == [f"h{n}.nii.gz" for n in range(4)]
    picture(br35h(tmp_path / "2d") / "no" / "._no0.jpg")
    assert not any("._" in case.name for case in read_dataset(tmp_path / "2d").cases)


def test_brats_may_be_unpacked_and_a_contrast_that_one_subject_lacks_is_expected(tmp_path):
    for path in brats(tmp_path, subjects=2).rglob("*.nii.gz"):
        path.rename(path.with_suffix(""))
    (tmp_path / "BraTS2021_00001" / "BraTS2021_00001_t1.nii").unlink()
    dataset = read_dataset(tmp_path)
    assert dataset.problems == ()
    missing = [case.name for case in dataset.cases if not case.image.exists()]
    assert missing == ["BraTS2021_00001/BraTS2021_00001_t1.nii.gz"]
    assert all(case.mask.exists() for case in dataset.cases)


def test_all_folders_of_the_mask_rcnn_variant_are_read(tmp_path):
    for seed, folder in enumerate(("TRAIN", "VAL", "TEST")):
        picture(tmp_path / folder / "y.jpg", seed)
    assert [case.name for case in read_dataset(tmp_path).cases] == ["TRAIN/y.jpg", "VAL/y.jpg", "TEST/y.jpg"]


def test_a_folder_s_names_state_contrast_and_subject_and_two_masks_of_one_name_are_refused(tmp_path):
    plain(tmp_path, healthy=0, lesioned=2)
    for name in ("IXI002-Guys-0828-T1", "IXI002-Guys-0999-T1", "re-sub-01_T1w", "sub-Ann_ses-2_T1w"):
        volume(tmp_path / f"{name}.nii.gz")
    mask(tmp_path / "masks" / "p0.nii")
    dataset = read_dataset(tmp_path)
    assert [(case.subject, case.contrast) for case in dataset.cases] == [
        ("IXI002", "t1"), ("IXI002", "t1"), ("p0", None), ("p1", None), ("re-sub-01_T1w", "t1"),
        ("sub-Ann", "t1"),
    ]  # fmt: skip
    assert [case.mask is not None for case in dataset.cases] == [False, False, True, True, False, False]
    (problem,) = dataset.problems
    assert problem.endswith("p0.nii and p0.nii.gz: have the same name; keep one")
