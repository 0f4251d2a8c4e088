"""What a volume's result and its record say, with an answer of the model that is known in advance."""

import itertools
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from brains import brain_array, save

from ssn.core.bundle import Bundle, ModelSpec
from ssn.core.errors import VolumeError
from ssn.core.geometry import GridConfig
from ssn.core.likeness import Likeness
from ssn.core.scoring import Calibration
from ssn.core.tilt import Tilt
from ssn.core.volume import read_volume
from ssn.runtime.backend import ALIGNED
from ssn.runtime.pipeline import infer_volume
from ssn.runtime.result import as_record, world_position

GRID, CELLS = GridConfig(), 12


class Answer:
    """A backend that finds every place as likely, but for the upper half of the grid."""

    max_slices = None

    def __init__(self, below=-1.0, above=-1.0, a_place=0.0):
        self.below, self.above, self.a_place = below, above, a_place

    def describe(self):
        return {"backend": "answer", ALIGNED: 0.5}

    def run(self, batches, times):
        for batch in batches:
            high = batch.places // CELLS**2 >= GRID.windows // 2
            yield (np.where(high, self.above, self.below) - self.a_place * batch.places).astype(np.float32)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.nii"
    return read_volume(save(path, *brain_array((6.0, 6.0, 5.0), lesion=False)))


@pytest.fixture
def bundle(tmp_path):
    shape = (GRID.windows, CELLS, CELLS)
    tables = (np.zeros(shape, np.float32), np.full(shape, 0.5, np.float32))
    calibration = Calibration(*tables, 1.0, 3.0, 2.5, 0.01, np.arange(1, 20, dtype=np.float32))
    return Bundle(tmp_path, {}, "0" * 64, ModelSpec("test", "t1", GRID, "robust", CELLS, 1, 0.5), calibration)


@pytest.mark.parametrize(
    ("score", "p_value", "abnormal"), [(0.9, 1, False), (1.1, 0.95, False), (18.9, 0.1, False), (19.1, 0.05, True)]
)
def test_a_volume_s_score_is_ranked_among_the_healthy_ones(scan, bundle, score, p_value, abnormal):
    found = infer_volume(scan, bundle, Answer(-score / 2, -score / 2))
    assert found.score == pytest.approx(score, rel=1e-4)
    assert (found.p_value, found.abnormal) == (pytest.approx(p_value), abnormal)


def test_a_volume_s_score_is_of_a_millilitre_whatever_its_voxels(scan, bundle):
    found = infer_volume(scan, bundle, Answer(a_place=0.01))
    highest = np.sort(found.score_map[found.brain])
    assert found.score == pytest.approx(highest[-6:].mean(), rel=1e-5), "voxels of 0.18 ml"
    assert found.score > 1.01 * highest[-1000:].mean()


def test_a_volume_that_scores_as_the_highest_healthy_one_is_as_healthy(scan, bundle):
    score = infer_volume(scan, bundle, Answer(-10, -10)).score
    healthy = np.append(np.arange(18), score).astype(np.float32)
    found = infer_volume(
        scan, replace(bundle, calibration=replace(bundle.calibration, healthy_scores=healthy)), Answer(-10, -10)
    )
    assert (found.p_value, found.abnormal) == (0.1, False)


def test_the_mask_is_brain_above_the_threshold_that_was_asked_for(scan, bundle):
    for threshold, level in ((None, 2.5), (5.0, 5.0), (-1.0, -1.0)):
        found = infer_volume(scan, bundle, Answer(0, -2), threshold=threshold)
        np.testing.assert_array_equal(found.mask, (found.score_map > level) & found.brain)
        assert found.threshold == level
        assert as_record(found, bundle, Answer())["map"]["threshold_z"] == level
        assert found.above_ml == pytest.approx(found.mask.sum() * 0.18)
    assert (found.score_map[~found.brain] > -1).all(), "what is not brain is 0"


def test_a_slice_has_its_highest_score_and_one_without_brain_has_none(scan, bundle):
    found = infer_volume(scan, bundle, Answer(-1, -2))
    with_brain = found.brain.any((0, 1))
    assert 0 < with_brain.sum() < with_brain.size
    np.testing.assert_array_equal(np.isfinite(found.slice_scores), with_brain)
    np.testing.assert_allclose(found.slice_scores[with_brain], found.score_map.max((0, 1))[with_brain])
    assert [value is None for value in as_record(found, bundle, Answer())["slices"]] == (~with_brain).tolist()


def test_the_peak_is_the_highest_place_and_not_the_lowest(scan, bundle):
    found = infer_volume(scan, bundle, Answer(30, -2))
    assert found.score_map.min() < -found.score_map.max()
    assert found.score_map[found.peak] == found.score_map.max() > 0


@pytest.mark.parametrize("answer", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_no_number_is_refused(scan, bundle, answer):
    with pytest.raises(VolumeError, match="answer is not finite"), np.errstate(all="ignore"):
        infer_volume(scan, bundle, Answer(-1, answer))


def test_every_doubt_is_on_record(scan, bundle):
    grey = Likeness(0.1, 0.1, tilt=Tilt(pitch=20))
    found = infer_volume(replace(scan, path=Path("a_flair.nii"), doubts=("of its header",)), bundle, Answer())
    found = replace(found, likeness=grey, brain_doubts=["of its brain"], mask=found.brain.astype(np.uint8))
    coarse = replace(bundle, calibration=replace(bundle.calibration, voxel_mm=3.5))
    said = as_record(found, coarse, Answer())["input"]
    begin = (
        "of its header",
        "its name says flair",
        "its voxels are 6 mm",
        "its head is tilted",
        "of its brain",
        "it was aligned by itself",
        "100% of",
    )
    assert [line[: len(start)] for line, start in zip(said["doubts"], begin, strict=True)] == list(begin)
    assert said["tilt_degrees"] == {"pitch": 20, "roll": 0, "yaw": 0}
    straightened = as_record(replace(found, straightened=True), coarse, Answer())["input"]
    assert len(straightened["doubts"]) == 6, "a tilt that was undone is none"
    assert straightened["straightened"]


@pytest.mark.parametrize(
    ("name", "modality", "doubted"),
    [
        ("sub-1_T1w_flair.nii", "t1", False),
        ("sub-1_T2w.nii", "T2", False),
        ("sub-1_T2w.nii", "t1", True),
        ("sub-1_t2w.nii", "t1gd", False),
        ("boldly_t12.nii", "t1", False),
    ],
)
def test_a_name_is_doubted_where_it_speaks_of_another_contrast_alone(scan, bundle, name, modality, doubted):
    found = infer_volume(replace(scan, path=Path(name)), bundle, Answer())
    known = replace(bundle, spec=replace(bundle.spec, modality=modality))
    said = [line for line in as_record(found, known, Answer())["input"]["doubts"] if "its name says" in line]
    assert bool(said) == doubted


@pytest.mark.parametrize("unit", [("mm", 1.0), ("meter", 0.001)])
def test_a_voxel_lies_in_the_world_where_nibabel_says_however_the_file_is_stored(tmp_path, unit):
    name, size = unit
    data, affine = brain_array((4.0, 5.0, 6.0))
    canonical = nib.Nifti1Image(data, np.diag([size, size, size, 1]) @ affine)
    for axes, flips in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        image = canonical.as_reoriented(np.array(list(zip(axes, flips, strict=True)), float))
        image.header.set_xyzt_units(name)
        nib.save(image, tmp_path / "scan.nii")
        found = world_position(read_volume(tmp_path / "scan.nii"), (3, 17, 8))
        np.testing.assert_allclose(found, (affine @ [3, 17, 8, 1])[:3], atol=1e-3)
