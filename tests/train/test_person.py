"""Subjects made from one scan."""

import nibabel as nib
import numpy as np
import pytest
from commands import run

from ssn.cli.train import app
from ssn.core.volume import read_volume
from ssn.train.lesions import VOLUME_RANGE_ML
from ssn.train.person import Person
from ssn.train.subject import make_subject
from ssn.train.synthetic import read_cohort
from ssn.train.templates import load_template


@pytest.fixture(scope="module")
def head():
    return make_subject(load_template("icbm152"), 4)


@pytest.fixture(scope="module")
def scan(head, tmp_path_factory):
    """A scan of it: 2 mm, its axes not in canonical order, of other units, its background not 0."""
    path = tmp_path_factory.mktemp("scan") / "head.nii.gz"
    image = nib.Nifti1Image(np.where(head.image > 0, 900 * head.image + 50, 0), head.affine)
    thin = image.slicer[::2, ::2, ::2]
    nib.save(thin.as_reoriented([[1, -1], [2, 1], [0, -1]]), path)
    return path


@pytest.fixture(scope="module")
def person(scan):
    return Person.read(scan)


def test_it_lies_where_the_scan_lies(person, scan):
    volume = read_volume(scan)
    np.testing.assert_allclose(np.linalg.norm(person.affine[:3, :3], axis=0), 1, atol=0.01)
    places = np.argwhere(person.brain).mean(0)
    own = nib.load(scan)
    there = np.argwhere(np.asarray(own.dataobj) != 0).mean(0)
    np.testing.assert_allclose(person.affine @ [*places, 1], own.affine @ [*there, 1], atol=0.5)
    assert person.brain.sum() / 1000 == pytest.approx((volume.data != 0).sum() * volume.voxel_ml, rel=0.03)


def test_its_tissue_is_told(person, head):
    fluid, grey, white = person.means[1:4]
    inside = 50 + 900 * head.image[head.image > 0]
    assert white == pytest.approx(np.quantile(inside, 0.85) / 8, rel=0.1), "900 grey values brought to about 100"
    assert 0 < fluid < grey < white
    np.testing.assert_allclose(person.fractions.sum(0)[person.brain], 1, atol=1e-5)
    np.testing.assert_allclose(person.field[person.fractions[2] > 0.9].mean(), 1, atol=0.1)


@pytest.mark.parametrize("kind", ["tumour", "wmh", "stroke", "atrophy"])
def test_a_lesion_changes_its_mask_and_little_else(person, kind):
    sick, well = person.subject(3, lesion=kind), person.subject(3)
    low, high = VOLUME_RANGE_ML[kind]
    assert 0.5 * low <= sick.mask.sum() / 1000 <= 1.1 * high
    change = np.abs(sick.image - well.image)
    assert change[sick.mask].mean() > 0.08, "seen"
    assert change[~sick.mask].mean() < 0.01
    assert not (sick.mask & (sick.image == 0)).any(), "inside the brain"


def test_subjects_differ_in_shape_and_keep_the_scan_s_tissue(person, head):
    one, again, other = (person.subject(seed) for seed in (5, 5, 6))
    assert np.array_equal(one.image, again.image)
    assert not np.array_equal(one.image > 0, other.image > 0)
    brain = head.image > 0
    for subject in (one, other):
        inside = subject.image[subject.image > 0]
        for share in (0.3, 0.5, 0.8):
            expected = np.quantile(head.image[brain], share)
            assert np.quantile(inside, share) == pytest.approx(expected, rel=0.15)
    turned = person.subject(5, tilt_degrees=25)
    assert (turned.image > 0).sum() == pytest.approx((one.image > 0).sum(), rel=0.08)
    assert ((turned.image > 0) != (one.image > 0)).mean() > 0.02


def test_a_cohort_is_made_from_a_scan(scan, tmp_path):
    sizes = ("--train", 1, "--calibration", 0, "--validation", 0, "--test", 1, "--workers", 1)
    out = tmp_path / "cohort"
    result = run(app, "synth", "-o", out, "--template", scan, *sizes)
    assert result.exit_code == 0, result.stderr
    healthy, sick = read_cohort(out / "cohort.csv")
    told = f"head@{read_volume(scan).contents()[:12]}"
    assert (healthy.template, healthy.lesion, sick.lesion) == (told, "", "tumour")
    assert (out / sick.image).name == "head-t1-test-0000.nii.gz"
    read_volume(out / healthy.image)
    mask = nib.load(out / sick.mask)
    edges = np.prod(mask.header.get_zooms())
    assert edges < 0.999, "what a voxel of 2 mm does not divide into"
    assert np.asarray(mask.dataobj).sum() * edges == pytest.approx(1000 * sick.volume_ml, rel=1e-3)
    other = nib.Nifti1Image(np.asarray(nib.load(scan).dataobj) * 2, nib.load(scan).affine)
    (tmp_path / "of-another").mkdir()
    nib.save(other, tmp_path / "of-another" / scan.name)
    result = run(app, "synth", "-o", out, "--template", tmp_path / "of-another" / scan.name, *sizes)
    assert result.exit_code == 1
    assert "is of another cohort" in result.stderr, "a name is not a head"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--template", "icbm"), "icbm: does not exist"),
        (("--template", "SCAN", "--contrast", "t2"), "is taken to be T1-weighted, not t2"),
    ],
)
def test_what_is_no_scan_is_refused_and_leaves_nothing(scan, tmp_path, options, said):
    given = [scan if one == "SCAN" else one for one in options]
    result = run(app, "synth", "-o", tmp_path / "cohort", *given)
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "cohort").exists()


def test_grey_values_may_lie_anywhere(person, scan, tmp_path):
    own = nib.load(scan)
    data = np.asarray(own.dataobj, np.float32)
    brain = data != 0
    scored = np.where(brain, (data - data[brain].mean()) / data[brain].std(), 0)
    for name, other in (("scored", scored), ("small", data / 1e6), ("white", np.where(brain, data, 2000))):
        nib.save(nib.Nifti1Image(other.astype(np.float32), own.affine), tmp_path / f"{name}.nii.gz")
        shares, expected = (
            one.fractions.sum((1, 2, 3)) / person.brain.sum()
            for one in (Person.read(tmp_path / f"{name}.nii.gz"), person)
        )
        np.testing.assert_allclose(shares, expected, atol=0.03, err_msg=name)


def test_a_scan_cropped_to_its_brain_has_subjects_as_whole_as_another(person, scan, tmp_path):
    own = nib.load(scan)
    places = np.argwhere(np.asarray(own.dataobj) != 0)
    box = tuple(slice(low - 1, high + 2) for low, high in zip(places.min(0), places.max(0), strict=True))
    nib.save(own.slicer[box], tmp_path / "cropped.nii.gz")
    cropped = Person.read(tmp_path / "cropped.nii.gz")
    middles = [one.affine @ [*np.argwhere(one.brain).mean(0), 1] for one in (cropped, person)]
    np.testing.assert_allclose(*middles, atol=0.5)
    for subject in (cropped.subject(5), cropped.subject(3, tilt_degrees=10)):
        faces = [subject.image.take(end, axis) for axis in range(3) for end in (0, -1)]
        del faces[4]  # below, where the scan itself ends inside the head
        assert max(np.count_nonzero(face) for face in faces) < 50


def test_what_is_doubtful_about_a_scan_is_said_because_all_its_subjects_inherit_it(scan, tmp_path):
    assert Person.read(scan).doubts == ()
    image = nib.as_closest_canonical(nib.load(scan))
    data = np.asarray(image.dataobj)
    low, high = np.flatnonzero(data.any((0, 1)))[[0, -1]]
    nib.save(image.slicer[:, :, low : high - 6], tmp_path / "cut.nii.gz")
    # As T2 it is refused, before any subject is made, and after that is said.
    result = run(app, "synth", "-o", tmp_path / "cohort", "--template", tmp_path / "cut.nii.gz", "--contrast", "t2")
    assert result.exit_code == 1
    assert f"Warning: {tmp_path / 'cut.nii.gz'}: the top of the head is cut off" in result.stderr


def test_a_head_whose_tissue_is_all_alike_is_refused_and_leaves_nothing(tmp_path):
    brain = np.zeros((50, 60, 50), np.float32)
    brain[8:42, 8:52, 8:42] = 500 + np.random.default_rng(0).normal(0, 2, (34, 44, 34))
    nib.save(nib.Nifti1Image(brain, np.diag([3.0, 3, 3, 1])), tmp_path / "flat.nii.gz")
    result = run(app, "synth", "-o", tmp_path / "cohort", "--template", tmp_path / "flat.nii.gz")
    assert result.exit_code == 1
    assert "cannot be told by its grey values" in result.stderr
    assert not (tmp_path / "cohort").exists()
