import pytest
from trees import br35h, brats, ixi, plain, table, volume

from ssn.core.errors import DataError
from ssn.train.cases import split_subjects
from ssn.train.datasets import of_contrast, open_split, read_dataset, recognise, select
from ssn.train.layouts import contrast_of


def splits(dataset):
    return {case.name: case.split for case in dataset.cases}


@pytest.mark.parametrize(("layout", "make"), [("ixi", ixi), ("brats", brats), ("br35h", br35h), ("folder", plain)])
def test_a_layout_is_recognised_from_its_path(tmp_path, layout, make):
    assert recognise(make(tmp_path / "data")) == layout
    assert read_dataset(tmp_path / "data").layout == layout


def test_ixi_is_healthy_and_split_by_subject_so_that_contrasts_agree(tmp_path):
    dataset = read_dataset(ixi(tmp_path, subjects=10, contrasts=("T1", "T2")))
    assert dataset.contrasts == ["t1", "t2"]
    assert not any(case.mask or case.lesion for case in dataset.cases)
    by_contrast = [{c.subject: c.split for c in dataset.cases if c.contrast == wanted} for wanted in ("t1", "t2")]
    assert by_contrast[0] == by_contrast[1]
    assert sorted(by_contrast[0].values()) == ["calibration"] * 2 + ["train"] * 8


def test_ixi_may_lie_in_a_folder_a_contrast(tmp_path):
    ixi(tmp_path / "T1"), ixi(tmp_path / "T2", contrasts=("T2",))
    assert len(of_contrast(read_dataset(tmp_path), "t2").cases) == 5


def test_brats_is_halved_and_its_mask_is_the_segmentation(tmp_path):
    cases = of_contrast(read_dataset(brats(tmp_path)), "flair").cases
    assert sorted(case.split for case in cases) == ["test", "test", "validation", "validation"]
    assert all(case.mask.name == f"{case.subject}_seg.nii.gz" for case in cases)
    assert all(case.image.name == f"{case.subject}_flair.nii.gz" for case in cases)


def test_br35h_trains_on_two_thirds_of_the_normals_and_on_no_tumour(tmp_path):
    dataset = read_dataset(br35h(tmp_path, variant=True))
    assert dataset.flat
    assert sorted(case.split for case in dataset.cases if not case.lesion) == ["train"] * 4 + ["validation"] * 2
    assert {case.split for case in dataset.cases if case.lesion} == {"test"}
    assert sum("Mask-RCNN" in case.name for case in dataset.cases) == 2
    assert "pred: 2 unlabelled" in dataset.notes[0]
    assert recognise(tmp_path / "Br35H-Mask-RCNN") == "br35h"


def test_a_folder_without_masks_is_healthy_and_with_masks_is_for_measuring(tmp_path):
    healthy = read_dataset(plain(tmp_path / "healthy"))
    assert sorted(case.split for case in healthy.cases) == ["calibration", "train", "train", "train"]
    mixed = read_dataset(plain(tmp_path / "mixed", healthy=2, lesioned=2))
    assert {case.split for case in mixed.cases} == {"validation", "test"}
    assert {case.name for case in mixed.cases if case.lesion} == {"p0.nii.gz", "p1.nii.gz"}


def test_what_ssn_infer_wrote_into_a_folder_is_neither_healthy_nor_a_mask_of_the_users(tmp_path):
    folder = plain(tmp_path)
    for name in ("h0_anomaly", "h0_mask", "h1_mask"):
        volume(folder / f"{name}.nii.gz")
    dataset = read_dataset(folder)
    assert not any("_anomaly" in case.name or "_mask" in case.name for case in dataset.cases)
    said = [problem.split(": ", 1)[1] for problem in dataset.problems]
    assert said == [
        "is what ssn-infer writes; move its outputs out of the data set",
        "is what ssn-infer writes; move its outputs out of the data set",
        f"looks like a mask among the images; move it to {folder / 'masks'}",
    ]


def test_a_table_says_everything_itself(tmp_path):
    path = table(tmp_path, "a.nii.gz,,train,", "b.nii.gz,m.nii.gz,test,stroke", columns="image,mask,split,lesion")
    first, second = read_dataset(path).cases
    assert (first.split, first.mask, first.lesion) == ("train", None, "")
    assert (second.mask, second.lesion, second.subject) == (tmp_path / "m.nii.gz", "stroke", "b")


def test_splits_are_the_same_on_every_machine_and_in_every_version():
    found = split_subjects([f"s{i}" for i in range(10)], "calibration", "train", 0.2)
    assert [name for name, split in found.items() if split == "calibration"] == ["s1", "s5"]


def test_splits_hardly_change_when_a_subject_is_added():
    names = [f"s{i}" for i in range(40)]
    before = split_subjects(names, "calibration", "train", 0.2)
    after = split_subjects([*reversed(names), "new"], "calibration", "train", 0.2)
    assert sum(before[name] != after[name] for name in names) <= 1
    assert set(split_subjects(["a", "b"], "calibration", "train", 0.01).values()) == {"calibration", "train"}


@pytest.mark.parametrize(
    ("name", "contrast"),
    [("sub-01_T2w", "t2"), ("x-t1ce", "t1ce"), ("t1_FLAIR", "flair"), ("patient1", None), ("at10", None)],
)
def test_a_name_states_its_contrast_between_separators(name, contrast):
    assert contrast_of(name) == contrast


@pytest.mark.parametrize("layout", ["csv", "ixi", "brats", "br35h", "folder"])
def test_a_wrong_layout_is_told_the_expected_tree_in_one_line(tmp_path, layout):
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(DataError, match=rf"layout {layout} expects PATH") as caught:
        read_dataset(tmp_path, layout)
    assert "\n" not in str(caught.value)


def test_paths_without_a_data_set_are_told_what_was_expected(tmp_path):
    (tmp_path / "empty").mkdir()
    scan = volume(tmp_path / "deeper" / "still" / "scan.nii.gz")
    for path, what in (
        (tmp_path / "nowhere", "no folder"), (tmp_path / "empty", "empty folder"),
        (tmp_path / "deeper", "none of the known layouts"), (scan, "one volume"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=f"{what}.*image,mask,split.*BraTS2021_00000"):
            read_dataset(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.nii,,traning", "line 2: split is 'traning'"),
        (",,train", "line 2: has no image"),
        ("a.nii,,test,stroke", "line 2: has lesion 'stroke' and no mask, so it would count as healthy"),
        ("\n\n,,train", "line 4: has no image"),
        ("a.nii,m.nii,test,all", "line 2: lesion is 'all', which is what tables call a group"),
        ("a.nii,m.nii,test,stroke,nan", "line 2: volume_ml is 'nan'"),
        ("a.nii,m.nii,test,stroke,-3", "line 2: volume_ml is '-3'"),
        ("a.nii,m.nii,test,stroke,inf", "line 2: volume_ml is 'inf'"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read_dataset(table(tmp_path, row, columns="image,mask,split,lesion,volume_ml"))


def test_a_table_with_a_column_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match="has two columns split"):
        read_dataset(table(tmp_path, "a.nii,,train,test", columns="image,mask,split,split"))


def test_files_beside_ixis_are_not_left_out_in_silence(tmp_path):
    ixi(tmp_path)
    volume(tmp_path / "other.nii.gz")
    (problem,) = read_dataset(tmp_path).problems
    assert "other.nii.gz: is not placed and named as layout ixi has it" in problem
    assert "other.nii.gz" in splits(read_dataset(tmp_path, "folder"))


def test_names_of_ixis_with_masks_beside_them_are_a_folder_of_patients(tmp_path):
    name = "IXI002-Guys-0828-T1.nii.gz"
    volume(tmp_path / "images" / name), volume(tmp_path / "masks" / name)
    (case,) = read_dataset(tmp_path).cases
    assert case.mask == tmp_path / "masks" / name


def test_a_suffix_may_be_in_capitals(tmp_path):
    volume(tmp_path / "a.nii.gz").rename(tmp_path / "A.NII.GZ")
    (case,) = read_dataset(tmp_path).cases
    assert (case.name, case.subject) == ("A.NII.GZ", "A")


def test_a_contrast_must_be_chosen_where_there_are_several(tmp_path):
    brats(tmp_path)
    with pytest.raises(DataError, match=r"mixed modalities: flair .*_flair.nii.gz.*--contrast"):
        open_split(tmp_path, "test")
    assert len(open_split(tmp_path, "test", contrast="T1")) == 2
    with pytest.raises(DataError, match="has no pd volume, only flair, t1"):
        open_split(tmp_path, "test", contrast="pd")


def test_a_split_that_is_not_there_and_2d_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="no volume in split 'train', only in test, validation"):
        open_split(brats(tmp_path / "b"), "train", contrast="t1")
    with pytest.raises(DataError, match="2D images"):
        open_split(br35h(tmp_path / "a"), "train")


def test_selecting_keeps_the_order_of_names(tmp_path):
    names = [case.name for case in select(read_dataset(ixi(tmp_path)), "train")]
    assert names == sorted(names)
    assert splits(read_dataset(tmp_path)) == splits(read_dataset(tmp_path))


@pytest.mark.parametrize(
    ("make", "beside"),
    [
        (lambda d: plain(d / "images", 3), "n.nii.gz"),
        (lambda d: plain(d, 3), "labels/h1.nii.gz"),
        (brats, "healthy_t1.nii.gz"),
        (brats, "BraTS20_Training_001/a_t1.nii.gz"),
    ],
)
def test_volumes_that_a_layout_would_leave_out_are_named(tmp_path, make, beside):
    make(tmp_path)
    assert read_dataset(tmp_path).problems == ()
    volume(tmp_path / beside)
    (problem,) = read_dataset(tmp_path).problems
    assert problem.startswith(f"{tmp_path / beside}: is not placed and named as layout")


def test_an_empty_mask_folder_makes_nobody_healthy(tmp_path):
    plain(tmp_path)
    (tmp_path / "masks").mkdir()
    (problem,) = read_dataset(tmp_path).problems
    assert "masks: holds no mask, so all volumes would count as healthy" in problem


def test_sessions_of_one_subject_are_in_one_split(tmp_path):
    for subject in range(6):
        for session in (1, 2):
            volume(tmp_path / f"sub-{subject:02d}_ses-{session}_T1w.nii.gz", 10 * subject + session)
    found = {}
    for case in read_dataset(tmp_path).cases:
        found.setdefault(case.subject, set()).add(case.split)
    assert sorted(found) == [f"sub-{subject:02d}" for subject in range(6)]
    assert all(len(one) == 1 for one in found.values())


def test_a_volume_whose_contrast_nothing_says_does_not_join_those_that_say_theirs(tmp_path):
    for seed, name in enumerate(("a_T1w", "b_T1w", "c_T1w", "d_MRA")):
        volume(tmp_path / f"{name}.nii.gz", seed)
    with pytest.raises(DataError, match=r"mixed modalities: t1 \(a_T1w.*\), unknown \(d_MRA"):
        of_contrast(read_dataset(tmp_path), None)
    assert {case.name[0] for case in of_contrast(read_dataset(tmp_path), "t1").cases} == set("abc")


def test_a_table_s_contrasts_are_those_of_file_names(tmp_path):
    cases = read_dataset(
        table(tmp_path, "a.nii,,train,T1w", "b.nii,,train,t1", columns="image,mask,split,contrast")
    ).cases
    assert [case.contrast for case in cases] == ["t1", "t1"]


def test_a_name_that_is_no_text_is_split_as_any(tmp_path):
    assert split_subjects(["h\udcff0", "h1"], "calibration", "train", 0.5).keys() == {"h\udcff0", "h1"}
