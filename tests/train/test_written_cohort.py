"""What stands in a written cohort's files is what its table says, also after an interruption."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from heads import small_template

from ssn.core.errors import DataError
from ssn.train import synthetic
from ssn.train.subject import make_subject, thicken
from ssn.train.synthetic import plan_cohort, read_cohort, write_cohort


@pytest.fixture(autouse=True)
def template(monkeypatch):
    """A small head, and no other processes, which would not have it."""
    head = small_template()
    monkeypatch.setattr(synthetic, "_template", lambda name: head)
    monkeypatch.setattr(synthetic, "worker_processes", lambda count: nullcontext(SimpleNamespace(map=map)))
    return head


@pytest.mark.parametrize(("contrast", "slice_mm", "tilt"), [("t1", 1, 0), ("t2", 4, 0), ("flair", 1, 20)])
def test_what_is_written_is_the_subject_that_was_planned(template, tmp_path, contrast, slice_mm, tilt):
    plan = plan_cohort({"train": 1, "test": 2}, contrast, "icbm152", 3, slice_mm, tilt)
    for record in read_cohort(write_cohort(tmp_path, plan)):
        options = {"contrast": contrast, "lesion": record.lesion or None, "tilt_degrees": tilt}
        expected = make_subject(template, record.seed, **options)
        if slice_mm > 1:
            expected = thicken(expected, slice_mm)
        image = nib.load(tmp_path / record.image)
        np.testing.assert_allclose(np.asarray(image.dataobj) / 2000, expected.image.clip(0, 2), atol=3e-4)
        np.testing.assert_allclose(image.affine, expected.affine)
        assert image.header.get_xyzt_units()[0] == "mm"
        if record.mask:
            mask = nib.load(tmp_path / record.mask)
            assert np.array_equal(np.asarray(mask.dataobj) > 0, expected.mask)
            np.testing.assert_allclose(mask.affine, expected.affine)
        assert record.volume_ml == pytest.approx(expected.mask.sum() * slice_mm / 1000, abs=1e-3)


def test_no_subject_is_in_two_cohorts_or_twice_in_one():
    cohorts = [plan_cohort({"train": 40, "test": 40}, "t1", "icbm152", seed) for seed in (0, 1, 2)]
    assert len({record.seed for plan in cohorts for record in plan}) == 240
    names = [name for record in cohorts[0] for name in (record.image, record.mask) if name]
    assert len(set(names)) == len(names) == 80 + 32


def test_an_interrupted_cohort_keeps_what_its_table_has_and_makes_the_others(tmp_path, monkeypatch):
    plan = plan_cohort({"train": 13}, "t1", "icbm152", 3)
    made = []

    def fast(template, seed, **options):
        made.append(seed)
        return synthetic_subject(seed)

    def interrupt(done):
        if done == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "make_subject", fast)
    with pytest.raises(KeyboardInterrupt):
        write_cohort(tmp_path, plan, progress=interrupt)
    assert [record.seed for record in read_cohort(tmp_path / "cohort.csv")] == [record.seed for record in plan[:10]]
    (tmp_path / plan[4].image).unlink()
    made.clear()
    counted = []
    write_cohort(tmp_path, plan, progress=counted.append)
    assert made == [record.seed for record in (plan[4], *plan[10:])]
    assert counted == [10, 11, 12, 13]
    assert read_cohort(tmp_path / "cohort.csv") == plan, "in their order"


def synthetic_subject(seed):
    from ssn.train.subject import Subject

    image = np.full((4, 5, 6), seed % 7 / 10, np.float32)
    return Subject(image, np.zeros(image.shape, bool), np.eye(4))


def test_a_subject_that_is_made_again_with_other_options_is_another_cohort_s(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "make_subject", lambda template, seed, **options: synthetic_subject(seed))
    plan = plan_cohort({"train": 2}, "t1", "icbm152", 3)
    write_cohort(tmp_path, plan)
    with pytest.raises(synthetic.OutputError, match="another cohort"):
        write_cohort(tmp_path, [replace(record, tilt_degrees=20) for record in plan])
    assert read_cohort(tmp_path / "cohort.csv") == plan


def test_a_table_that_a_spreadsheet_saved_is_read_and_one_that_is_not_there_is_said_with_what_makes_it(tmp_path):
    plan = plan_cohort({"test": 2}, "t1", "icbm152", 3)
    synthetic._write_table(tmp_path / "cohort.csv", plan)
    (tmp_path / "saved.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "cohort.csv").read_bytes())
    assert read_cohort(tmp_path / "saved.csv") == plan
    with pytest.raises(DataError, match=r"cannot be read .*ssn-train synth"):
        read_cohort(tmp_path / "none.csv")
