"""Which cases of a data set are measured on, or taken for healthy, and what is refused before any is computed."""

import json
from types import SimpleNamespace

import pytest
from trees import brats, mask, plain, table, volume

from ssn.core.bundle import MANIFEST_FILE
from ssn.core.errors import DataError
from ssn.core.hashed_files import file_sha256
from ssn.train import trained
from ssn.train.cases import Case
from ssn.train.checkpoint import RECORD_FILE
from ssn.train.datasets import (
    of_contrast,
    open_healthy,
    open_measured,
    open_split,
    read_dataset,
    recognise,
    refuse_shared,
    refuse_without_lesion,
)
from ssn.train.trained import refuse_trained


@pytest.fixture
def cohort(tmp_path):
    """A volume in each split, those that are measured on with a lesion, and a healthy one to test."""
    for seed, name in enumerate("tcveh"):
        volume(tmp_path / f"{name}.nii", seed)
    mask(tmp_path / "m.nii")
    rows = ("t.nii,,train", "c.nii,,calibration", "v.nii,m.nii,validation", "e.nii,m.nii,test", "h.nii,,test")
    return table(tmp_path, *rows)


def names(cases):
    return [case.name for case in cases]


def test_without_a_threshold_to_choose_all_that_is_not_learned_from_is_measured_but_of_a_table_its_test_split(
    tmp_path, cohort
):
    found = open_measured(brats(tmp_path / "brats"), contrast="t1")
    assert sorted(case.split for case in found) == ["test", "test", "validation", "validation"]
    assert names(open_measured(cohort)) == ["e.nii", "h.nii"]


def test_a_data_set_with_nothing_to_measure_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no volume in split 'test', only in calibration, train .* folder masks"):
        open_measured(plain(tmp_path))


def test_what_is_measured_on_is_checked_by_header_and_mask(tmp_path):
    folder = brats(tmp_path, subjects=2, contrasts=("t1",))
    for number in range(2):
        mask(folder / f"BraTS2021_0000{number}" / f"BraTS2021_0000{number}_seg.nii.gz", 0.0)
    with pytest.raises(DataError, match=r"_seg\.nii\.gz: marks nothing"):
        open_measured(folder)


def test_what_is_wrong_with_the_whole_data_set_is_refused_whichever_split_is_opened(tmp_path, cohort):
    volume(plain(tmp_path / "folder") / "h0_mask.nii.gz")
    with pytest.raises(DataError, match=r"h0_mask\.nii\.gz: looks like a mask among the images"):
        open_split(tmp_path / "folder", "train")
    twice = ("t.nii,,train,anna", "c.nii,,calibration,bert", "./t.nii,,calibration,carl")
    with pytest.raises(DataError, match=r"\./t\.nii: is listed more than once"):
        open_split(table(tmp_path, *twice, columns="image,mask,split,subject"), "train")


def test_healthy_volumes_are_those_without_a_mask_of_whatever_split(cohort):
    assert names(open_healthy(cohort, None)) == ["t.nii", "c.nii", "h.nii"]


def test_healthy_volumes_that_cannot_be_read_or_are_none_are_refused(tmp_path, cohort):
    (tmp_path / "c.nii").unlink()
    with pytest.raises(DataError, match=r"c\.nii: does not exist"):
        open_healthy(cohort, None)
    with pytest.raises(DataError, match=r"brats: has no healthy volume"):
        open_healthy(brats(tmp_path / "brats", subjects=1, contrasts=("t1",)), None)


def test_a_split_with_one_lesion_among_healthy_volumes_is_measured_on(tmp_path):
    healthy = Case(tmp_path / "h.nii", "h.nii", "h", "test")
    refuse_without_lesion([healthy, Case(tmp_path / "e.nii", "e.nii", "e", "test", tmp_path / "m.nii")])
    with pytest.raises(DataError, match=r"no test volume has a lesion \(h\.nii"):
        refuse_without_lesion([healthy])


def test_a_volume_of_two_data_sets_is_refused_whatever_its_name(tmp_path):
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (
        Case(tmp_path / name, name, name, split) for name, split in zip("abc", ("train", "test", "test"), strict=True)
    )
    refuse_shared([a], [b])
    with pytest.raises(DataError, match=r"c: is in split 'test', and as .*a in split 'train'; keep it in one"):
        refuse_shared([a], [b, c])


def test_what_a_checkpoint_or_a_bundle_was_trained_on_is_refused_whatever_its_name(tmp_path, monkeypatch):
    for name in ("known", "new"):
        (tmp_path / name).write_text(name)
    digest = file_sha256(tmp_path / "known")
    for folder in ("checkpoint", "bundle"):
        (tmp_path / folder).mkdir()
    (tmp_path / "checkpoint" / RECORD_FILE).write_text(json.dumps({"made_of": {"volumes": [digest]}}))
    (tmp_path / "bundle" / MANIFEST_FILE).touch()
    monkeypatch.setattr(trained, "load_bundle", lambda folder: SimpleNamespace(trained_on=(digest,)))
    known, new = (Case(tmp_path / name, name, name, "test") for name in ("known", "new"))
    for folder in ("checkpoint", "bundle"):
        refuse_trained(tmp_path / folder, [new])
        with pytest.raises(DataError, match=rf"known: is in split 'test', and .*{folder} was trained on it"):
            refuse_trained(tmp_path / folder, [new, known])


def test_volumes_of_which_nothing_says_the_contrast_are_of_the_one_that_is_asked_for(tmp_path):
    found = of_contrast(read_dataset(plain(tmp_path)), "T2")
    assert [case.contrast for case in found.cases] == ["t2"] * 4
    assert found.contrasts == ["t2"]


def test_a_synthetic_cohort_s_folder_is_its_table(tmp_path, cohort):
    cohort.rename(tmp_path / "cohort.csv")
    assert recognise(tmp_path) == "csv"
    assert [case.split for case in read_dataset(tmp_path).cases] == [
        "train",
        "calibration",
        "validation",
        "test",
        "test",
    ]
    (tmp_path / "cohort.csv").rename(tmp_path / "TABLE.CSV")
    assert recognise(tmp_path / "TABLE.CSV") == "csv"
