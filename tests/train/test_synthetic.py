import csv
from dataclasses import asdict, replace

import nibabel as nib
import numpy as np
import pytest

from ssn.core.errors import DataError, OutputError
from ssn.core.pose import find_brain
from ssn.core.volume import read_volume
from ssn.train.datasets import open_split
from ssn.train.lesions import LESION_KINDS, VOLUME_RANGE_ML
from ssn.train.subject import Subject, make_subject, thicken
from ssn.train.synthetic import plan_cohort, read_cohort, write_cohort
from ssn.train.templates import load_template


@pytest.fixture(scope="module")
def template():
    return load_template("icbm152")


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_a_lesion_changes_its_mask_and_little_else(template, kind):
    sick = make_subject(template, 21, lesion=kind)
    well = make_subject(template, 21)
    assert sick.image.shape == well.image.shape
    low, high = VOLUME_RANGE_ML[kind]
    assert 0.5 * low <= sick.mask.sum() / 1000 <= 1.1 * high
    change = np.abs(sick.image - well.image)
    assert change[sick.mask].mean() > 0.1, "seen in T1"
    if kind != "tumour":  # whose mass effect moves its surroundings
        assert change[~sick.mask].mean() < 0.005
    assert not (sick.mask & (sick.image == 0)).any(), "inside the brain"


def test_a_seed_is_a_subject(template):
    one, again, other = (make_subject(template, seed).image for seed in (5, 5, 6))
    assert np.array_equal(one, again)
    assert other.shape != one.shape or not np.allclose(one, other, atol=0.1)


def test_contrasts_differ_as_they_should(template):
    images = {name: make_subject(template, 5, contrast=name).image for name in ("t1", "t2", "flair")}
    deep = tuple(n // 2 for n in images["t1"].shape)
    white = (deep[0] + 30, deep[1], deep[2] + 25)
    around = tuple(slice(c - 4, c + 5) for c in white)
    assert np.median(images["t1"][around]) > np.median(images["t2"][around])


def test_thick_slices_lie_where_the_thin_ones_did():
    rng = np.random.default_rng(0)
    image = np.zeros((3, 4, 11), np.float32)
    image[1, :, 1:9] = rng.uniform(0.5, 1, (4, 8))
    mask = np.zeros(image.shape, bool)
    mask[1, 2, 3:6] = True  # one voxel of the first slice of four, two of the second
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = 10, 20, 30
    thick = thicken(Subject(image, mask, affine), 4)
    assert thick.image.shape == thick.mask.shape == (3, 4, 3)
    np.testing.assert_allclose(thick.image[1, :, 0], image[1, :, 1:4].mean(1), rtol=1e-6)
    np.testing.assert_allclose(thick.image[1, :, 1], image[1, :, 4:8].mean(1), rtol=1e-6)
    assert not thick.image[:, :, 2].any(), "a quarter of it is brain"
    assert not thick.image[[0, 2]].any()
    assert np.argwhere(thick.mask).tolist() == [[1, 2, 1]], "half of it is lesion"
    np.testing.assert_allclose(thick.affine @ [0, 0, 1, 1], affine @ [0, 0, 5.5, 1], err_msg="between 4 and 7")
    np.testing.assert_allclose(np.linalg.norm(thick.affine[:3, :3], axis=0), [1, 1, 4])
    assert np.array_equal(thicken(Subject(image, mask, affine), 1).image, image)


def test_a_lesion_thinner_than_half_a_slice_stays_where_most_of_it_is():
    image = np.ones((2, 2, 10), np.float32)
    mask = np.zeros(image.shape, bool)
    mask[0, 0, 4:6] = mask[0, 1, 5] = True
    mask[0, 0, 6] = True
    assert np.argwhere(thicken(Subject(image, mask, np.eye(4)), 5).mask).tolist() == [[0, 0, 1]]
    healthy = np.zeros(image.shape, bool)
    assert not thicken(Subject(image, healthy, np.eye(4)), 5).mask.any()


def test_a_plan_repeats_no_subject_and_mixes_healthy_ones_into_the_test():
    plan = plan_cohort({"train": 5, "calibration": 3, "validation": 5, "test": 10}, "t1", "icbm152", 3)
    assert len({record.seed for record in plan}) == len(plan) == 23
    assert not any(record.lesion for record in plan if record.split in ("train", "calibration"))
    test = [record.lesion for record in plan if record.split == "test"]
    assert sorted(test) == sorted([*LESION_KINDS, ""] * 2)


def test_a_cohort_of_nobody_is_refused():
    with pytest.raises(DataError, match="no subjects"):
        plan_cohort({"train": 0, "test": 0}, "t1", "icbm152", 3)


def test_a_cohort_is_written_resumed_and_usable(tmp_path):
    plan = plan_cohort({"train": 1, "test": 1}, "t1", "icbm152", 3)
    write_cohort(tmp_path, plan[:1], workers=1)
    first = (tmp_path / plan[0].image).stat().st_mtime_ns
    write_cohort(tmp_path, plan, workers=1)
    assert (tmp_path / plan[0].image).stat().st_mtime_ns == first, "kept"
    (tmp_path / plan[1].mask).unlink()
    write_cohort(tmp_path, plan, workers=1)
    records = read_cohort(tmp_path / "cohort.csv")
    assert [replace(record, volume_ml=0.0) for record in records] == plan
    test = open_split(tmp_path, "test")
    mask = nib.load(test[0].mask)
    assert np.asanyarray(mask.dataobj).sum() == pytest.approx(1000 * test[0].volume_ml)
    volume = read_volume(test[0].image)
    assert find_brain(volume).mean() > 0.1
    with pytest.raises(DataError, match="no volume in split"):
        open_split(tmp_path, "validation")


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ({"train": 2}, ("t1", "icbm152", 4)),
        ({"train": 2}, ("t2", "icbm152", 3)),
        ({"train": 2}, ("t1", "sri24", 3)),
        ({"train": 2}, ("t1", "icbm152", 3, 5)),
        ({"train": 1}, ("t1", "icbm152", 3)),
    ],
)
def test_another_cohort_is_not_replaced(tmp_path, sizes, options):
    there = plan_cohort({"train": 2}, "t1", "icbm152", 3)
    with (tmp_path / "cohort.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(asdict(there[0])))
        writer.writeheader()
        writer.writerows(asdict(record) for record in there)
    before = (tmp_path / "cohort.csv").read_bytes()
    said = r"another cohort \(seed 3, t1, icbm152, slices of 1 mm, tilted by 0 degrees; 2 train\); use another folder"
    with pytest.raises(OutputError, match=said):
        write_cohort(tmp_path, plan_cohort(sizes, *options))
    assert (tmp_path / "cohort.csv").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cohort_of_thick_slices_says_so_in_its_headers_and_its_table(tmp_path):
    plan = plan_cohort({"test": 1}, "t1", "icbm152", 3, slice_mm=5)
    write_cohort(tmp_path, plan, workers=1)
    assert [record.slice_mm for record in read_cohort(tmp_path / "cohort.csv")] == [5]
    (case,) = open_split(tmp_path, "test")
    volume, mask = read_volume(case.image), np.asanyarray(nib.load(case.mask).dataobj)
    np.testing.assert_allclose(volume.zooms, [1, 1, 5])
    assert mask.sum() * 5 == pytest.approx(1000 * case.volume_ml)
    assert mask.shape == volume.data.shape


def test_a_tilted_subject_is_the_same_one_turned_by_that_angle(template):
    straight, tilted = (make_subject(template, 3, tilt_degrees=degrees).image for degrees in (0, 20))
    assert tilted.shape[:2] == straight.shape[:2]
    brain, other = straight != 0, tilted != 0
    assert other.sum() == pytest.approx(brain.sum(), rel=0.05), "a rotation keeps the volume"
    assert straight[brain].mean() == pytest.approx(tilted[other].mean(), rel=0.05)
    axes = [np.linalg.eigh(np.cov(np.argwhere(inside).T))[1][:, 2] for inside in (brain, other)]
    turned = np.rad2deg(np.arccos(abs(axes[0] @ axes[1])))
    assert 3 < turned < 23, "the longest axis turns by the angle, or by less where it is near the rotation's own"


def test_a_tilted_cohort_says_so_in_its_table(tmp_path):
    write_cohort(tmp_path, plan_cohort({"test": 1}, "t1", "icbm152", 3, tilt_degrees=15), workers=1)
    assert [record.tilt_degrees for record in read_cohort(tmp_path / "cohort.csv")] == [15]


def test_a_table_of_before_thick_slices_is_still_read(tmp_path):
    (old,) = plan_cohort({"train": 1}, "t1", "icbm152", 3)
    row = {name: str(value) for name, value in asdict(old).items() if name not in ("slice_mm", "tilt_degrees")}
    (tmp_path / "cohort.csv").write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    assert read_cohort(tmp_path / "cohort.csv") == [old]


def test_a_table_of_another_kind_is_refused(tmp_path):
    (tmp_path / "cohort.csv").write_text("name,age\nx,3\n")
    with pytest.raises(DataError, match="columns must be"):
        read_cohort(tmp_path / "cohort.csv")
