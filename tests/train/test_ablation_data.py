"""Which volumes an ablation takes, and what is refused before any of them is computed."""

import shutil

import pytest
from brains import brain_file
from trees import brats, mask, table

from ssn.core.errors import DataError
from ssn.train.ablation_data import open_ablation_data


def test_volumes_measured_on_may_bring_no_validation_split(tmp_path):
    own, other, tables = tmp_path / "own", tmp_path / "other", []
    for folder, splits in ((own, ("train", "calibration", "validation", "test")), (other, ("calibration", "test"))):
        folder.mkdir()
        for split in splits:
            brain_file(folder / f"{split}.nii", (6.0, 6.0, 6.0), lesion=False, seed=len(split) + 50 * (folder == other))
        mask(folder / "m.nii")
        masks = {"validation": "m.nii", "test": "m.nii"}
        tables.append(table(folder, *(f"{split}.nii,{masks.get(split, '')},{split}" for split in splits)))
    found = open_ablation_data(tables[0], measure_on=tables[1], calibrate_on=tables[1])
    parents = {split: cases[0].image.parent for split, cases in vars(found).items()}
    assert parents == {"train": own, "calibration": other, "validation": own, "test": other}


def test_what_is_measured_on_has_a_contrast_of_its_own(tmp_path):
    own = table(tmp_path, "t.nii,,train", "c.nii,,calibration", "v.nii,m.nii,validation", "e.nii,m.nii,test")
    for seed, name in enumerate("tcve"):
        brain_file(tmp_path / f"{name}.nii", (6.0, 6.0, 6.0), seed=100 + seed)
    mask(tmp_path / "m.nii")
    other = brats(tmp_path / "brats")
    with pytest.raises(DataError, match=r"brats: mixed modalities"):
        open_ablation_data(own, measure_on=other)
    found = open_ablation_data(own, measure_on=other, measure_contrast="flair")
    assert {case.contrast for case in [*found.validation, *found.test]} == {"flair"}


def test_a_volume_that_is_learned_from_is_not_measured_under_another_name(tmp_path):
    for seed, name in enumerate("tcve"):
        brain_file(tmp_path / f"{name}.nii", (6.0, 6.0, 6.0), seed=seed)
    mask(tmp_path / "m.nii")
    own = table(tmp_path, "t.nii,,train", "c.nii,,calibration", "v.nii,m.nii,validation", "e.nii,m.nii,test")
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "c.nii", tmp_path / "other" / "patient.nii")
    shutil.copy(tmp_path / "m.nii", tmp_path / "other")
    other = table(tmp_path / "other", "patient.nii,m.nii,test")
    with pytest.raises(DataError, match=r"patient\.nii: is in split 'test', and as .*c\.nii in split 'calibration'"):
        open_ablation_data(own, measure_on=other)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_without_a_lesion_is_refused_before_any_training(tmp_path, split):
    for seed, name in enumerate("tcve"):
        brain_file(tmp_path / f"{name}.nii", (6.0, 6.0, 6.0), seed=seed)
    mask(tmp_path / "m.nii")
    rows = [
        f"{name}.nii,{'' if where == split else 'm.nii'},{where}"
        for name, where in (("v", "validation"), ("e", "test"))
    ]
    with pytest.raises(DataError, match=f"no {split} volume has a lesion"):
        open_ablation_data(table(tmp_path, "t.nii,,train", "c.nii,,calibration", *rows))


def test_volumes_that_calibrate_or_choose_a_threshold_have_no_other_use(tmp_path):
    for seed, name in enumerate("tcve"):
        brain_file(tmp_path / f"{name}.nii", (6.0, 6.0, 6.0), seed=seed)
    mask(tmp_path / "m.nii")
    own = table(tmp_path, "t.nii,,train", "c.nii,,calibration", "v.nii,m.nii,validation", "e.nii,m.nii,test")
    for name, row in (("t", "t.nii,,calibration"), ("v", "v.nii,m.nii,test")):
        other = tmp_path / name
        other.mkdir()
        shutil.copy(tmp_path / f"{name}.nii", other)
        shutil.copy(tmp_path / "m.nii", other)
        taken = {"calibrate_on" if name == "t" else "measure_on": table(other, row)}
        with pytest.raises(DataError, match=rf"{name}/{name}\.nii: is in split .*{name}\.nii in split"):
            open_ablation_data(own, **taken)


def test_a_data_set_that_is_measured_on_calibrates_on_the_same_contrast(tmp_path):
    own = table(tmp_path, "t.nii,,train", "c.nii,,calibration", "v.nii,m.nii,validation", "e.nii,m.nii,test")
    rows = [f"{name}_{contrast}.nii,{'m.nii' if name == 'e' else ''},{split}" for contrast in ("t1", "flair")
            for name, split in (("c", "calibration"), ("e", "test"))]  # fmt: skip
    (tmp_path / "other").mkdir()
    for seed, name in enumerate(("t", "c", "v", "e", *(f"other/{row.split(',')[0][:-4]}" for row in rows))):
        brain_file(tmp_path / f"{name}.nii", (6.0, 6.0, 6.0), seed=seed)
    for folder in (tmp_path, tmp_path / "other"):
        mask(folder / "m.nii")
    other = table(tmp_path / "other", *rows)
    found = open_ablation_data(own, measure_on=other, measure_contrast="flair", calibrate_on=other)
    assert [case.contrast for case in (*found.calibration, *found.test)] == ["flair", "flair"]
