"""A scan whose every millimetre is known: where its tissue lies after it was read, and in its subjects."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ssn.core.errors import DataError
from ssn.train import synthetic
from ssn.train.person import Person
from ssn.train.subject import thicken
from ssn.train.synthetic import plan_cohort, read_cohort, write_cohort

SEMI_AXES = np.array([37.0, 47.0, 40.0])  # mm
VENTRICLE = np.array([9.0, 12.0, -8.0])  # mm, RAS: right, before, below
ZOOMS = (2.0, 3.0, 2.5)
MIDDLE = np.array([5.0, -7.0, 20.0])  # mm


def head(noise=1.0, island=False):
    """Return (grey values, affine) of white matter in a bark of grey, with a ventricle of fluid; RAS."""
    shape = np.ceil((2 * SEMI_AXES + 30) / ZOOMS).astype(int)
    affine = np.diag([*ZOOMS, 1.0])
    affine[:3, 3] = MIDDLE - (shape - 1) / 2 * ZOOMS
    places = np.indices(shape) * np.array(ZOOMS).reshape(3, 1, 1, 1) + (affine[:3, 3] - MIDDLE).reshape(3, 1, 1, 1)
    radius = np.sqrt(sum((axis / semi) ** 2 for axis, semi in zip(places, SEMI_AXES, strict=True)))
    fluid = sum((axis - at) ** 2 for axis, at in zip(places, VENTRICLE, strict=True)) < 19**2
    data = np.where(fluid, 150.0, np.where(radius < 0.78, 800.0, 530.0))
    data += np.random.default_rng(0).normal(0, noise, shape)
    inside = radius < 1
    if island:
        inside[3:5, 3:5, 3:6] = True
    return data.clip(1) * inside, affine


def save(path, data, affine, axes=((0, 1), (1, 1), (2, 1)), unit="mm"):
    size = {"mm": 1.0, "meter": 1e-3, "micron": 1e3}[unit]
    image = nib.Nifti1Image(data.astype(np.float32), np.diag([size, size, size, 1]) @ affine).as_reoriented(axes)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


@pytest.fixture(scope="module")
def person(tmp_path_factory):
    return Person.read(save(tmp_path_factory.mktemp("scan") / "head.nii", *head()))


def sides(brain, affine):
    """First and last millimetre of a brain along each axis, (2, 3)."""
    places = np.argwhere(brain)
    ends = np.stack([places.min(0) - 0.5, places.max(0) + 0.5])
    return ends @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize(
    ("axes", "unit"),
    [(((0, 1), (1, 1), (2, 1)), "mm"), (((2, -1), (0, 1), (1, -1)), "mm"), (((1, 1), (2, -1), (0, -1)), "meter")],
)
def test_it_lies_where_the_scan_lies_however_that_is_stored(tmp_path, axes, unit):
    data, affine = head()
    oblique = np.eye(4)
    oblique[:3, :3] = Rotation.from_euler("xyz", (8, -5, 12), degrees=True).as_matrix()
    found = Person.read(save(tmp_path / "head.nii", data, oblique @ affine, axes, unit))
    np.testing.assert_allclose(np.linalg.norm(found.affine[:3, :3], axis=0), 1, atol=0.03)
    np.testing.assert_allclose(sides(found.brain, found.affine), sides(data > 0, oblique @ affine), atol=0.6)
    deep = ndimage.binary_erosion(found.brain, iterations=9)
    ventricle = np.argwhere(deep & (found.fractions[0] > 0.5)).mean(0)
    np.testing.assert_allclose(found.affine @ [*ventricle, 1], oblique @ [*(MIDDLE + VENTRICLE), 1], atol=0.4)


def test_each_tissue_is_where_it_is(person):
    places = np.indices(person.brain.shape).reshape(3, -1).T @ person.affine[:3, :3].T + person.affine[:3, 3] - MIDDLE
    radius = np.linalg.norm(places / SEMI_AXES, axis=1).reshape(person.brain.shape)
    ventricle = np.linalg.norm(places - VENTRICLE, axis=1).reshape(person.brain.shape)
    regions = (ventricle < 15, (radius > 0.85) & (radius < 0.92) & (ventricle > 24), (radius < 0.7) & (ventricle > 24))
    found = [[fraction[region].mean() for fraction in person.fractions] for region in regions]
    np.testing.assert_allclose(found, np.eye(3), atol=0.2)
    levels = np.array(person.means) / person.means[3]
    np.testing.assert_allclose(levels, np.array([0, 150, 530, 800, 1340]) / 800, atol=0.07)


def test_what_the_skull_stripper_left_beside_the_brain_is_left_out(person, tmp_path):
    found = Person.read(save(tmp_path / "head.nii", *head(island=True)))
    assert ndimage.label(found.brain)[1] == 1
    np.testing.assert_allclose(sides(found.brain, found.affine), sides(person.brain, person.affine))


def test_subjects_have_noise_and_a_bias_field_of_their_own(person):
    one, other = (person.subject(seed).image for seed in (1, 2))
    fields = []
    for image in (one, other):
        inside = ndimage.binary_erosion(ndimage.gaussian_filter(image, 1) > 0.75, iterations=5)
        rough = (image - ndimage.gaussian_filter(image, 1))[inside].std()  # inside white matter
        assert 0.003 < rough < 0.03, "and the scan itself has hardly any"
        weight = ndimage.gaussian_filter(inside.astype(np.float32), 8)
        field = ndimage.gaussian_filter(image * inside, 8) / weight.clip(1e-6)
        fields.append(field[inside].std())
    assert min(fields) > 0.002
    assert abs(fields[0] - fields[1]) > 1e-4


@pytest.mark.parametrize(
    ("seed", "options", "brain", "lesion", "voxels"),
    [
        (3, {"lesion": "wmh"}, (45.7, 60.5, 54.4), (42.9, 65.9, 29.3), 703),
        (5, {"lesion": "stroke", "tilt_degrees": 15}, (48.5, 63.8, 53.6), (77.6, 59.6, 58.3), 2819),
    ],
)
def test_a_seed_makes_the_subject_of_a_scan_that_it_has_always_made(person, seed, options, brain, lesion, voxels):
    """What an older version began is gone on with."""
    made = person.subject(seed, **options)
    np.testing.assert_allclose(np.argwhere(made.image > 0).mean(0), brain, atol=0.3)
    np.testing.assert_allclose(np.argwhere(made.mask).mean(0), lesion, atol=2)
    assert made.mask.sum() == pytest.approx(voxels, rel=0.02)


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(synthetic, "worker_processes", lambda count: nullcontext(SimpleNamespace(map=map)))


def test_what_is_written_is_the_subject_of_the_scan_that_was_planned(person, tmp_path, monkeypatch, in_this_process):
    monkeypatch.setattr(synthetic, "_person", lambda path: person)
    (plan,) = plan_cohort({"test": 1}, "t1", "head", 3, slice_mm=3, tilt_degrees=20)
    (record,) = read_cohort(write_cohort(tmp_path, [plan], scan=tmp_path / "head.nii"))
    expected = thicken(person.subject(plan.seed, lesion="tumour", tilt_degrees=20), 3)
    image, mask = (nib.load(tmp_path / name) for name in (record.image, record.mask))
    np.testing.assert_allclose(np.asarray(image.dataobj) / 2000, expected.image.clip(0, 2), atol=3e-4)
    assert np.array_equal(np.asarray(mask.dataobj) > 0, expected.mask)
    np.testing.assert_allclose(image.affine, expected.affine, atol=1e-6)
    np.testing.assert_allclose(mask.affine, image.affine)


def test_a_lesion_that_no_place_in_the_scan_suits_is_refused_in_one_line(
    person, tmp_path, monkeypatch, in_this_process
):
    middle = person.brain.shape[2] // 2
    slab = np.zeros_like(person.brain)
    slab[:, :, middle - 14 : middle + 14] = person.brain[:, :, middle - 14 : middle + 14]
    monkeypatch.setattr(synthetic, "_person", lambda path: replace(person, brain=slab))
    stroke = plan_cohort({"test": 3}, "t1", "slab", 3)[2:]
    with pytest.raises(DataError, match=r"slab\.nii: no place in this brain suits the lesion; .*a whole brain"):
        write_cohort(tmp_path / "cohort", stroke, scan=tmp_path / "slab.nii")
