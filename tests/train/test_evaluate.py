"""What is measured of a map against its mask, and what a summary makes of many volumes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from brains import save

from ssn.core.errors import DataError
from ssn.train import evaluate
from ssn.train.cases import Case
from ssn.train.evaluate import ScoredVolume, VolumeAccuracy, measure_volume, summarise, validation_threshold

VOXEL_ML = 0.5


@pytest.fixture
def scored():
    """A map of 2 x 2 x 3 voxels with brain where x is 0: above 0.5 in one voxel of it, and in one beside."""
    score_map = np.zeros((2, 2, 3), np.float32)
    score_map[0, :, 1] = 0.9, 0.5
    score_map[1, 0, 0] = 2.0
    brain = np.zeros(score_map.shape, bool)
    brain[0] = True
    return ScoredVolume(score_map, brain, 3.0, VOXEL_ML)


@pytest.fixture
def lesioned(tmp_path):
    """A case whose lesion is that voxel below 0.5, and one beside the brain in another slice."""
    mask = np.zeros((2, 2, 3), bool)
    mask[0, 1, 1] = mask[1, 1, 2] = True
    return Case(tmp_path / "i.nii", "i", "i", "test", save(tmp_path / "m.nii", mask, np.eye(4), np.uint8), "stroke")


def test_a_healthy_volume_has_false_positives_alone_in_millilitres_of_its_brain(scored, tmp_path):
    row = measure_volume(scored, Case(tmp_path / "i.nii", "i", "i", "test"), 0.5)
    assert row == VolumeAccuracy("i", "", 0.0, 3.0, None, None, None, None, None, None, VOXEL_ML)


def test_of_a_lesion_what_lies_in_the_brain_is_measured_and_what_is_marked_is_no_false_positive(scored, lesioned):
    low, high = (measure_volume(scored, lesioned, threshold) for threshold in (0.4, 0.5))
    assert (low.lesion, low.volume_ml, low.score) == ("stroke", 2 * VOXEL_ML, 3.0), "all of the mask"
    assert (low.dice, low.false_positive_ml) == (pytest.approx(2 / 3), VOXEL_ML)
    assert (high.dice, high.false_positive_ml) == (0.0, VOXEL_ML), "0.5 is not above 0.5"
    assert low.slice_auroc == 1.0, "the slice whose lesion lies beside the brain is none with a lesion"
    assert measure_volume(scored, replace(lesioned, volume_ml=7.5), 0.4).volume_ml == 7.5


def test_slices_that_all_have_a_lesion_have_no_area(scored, lesioned):
    one = np.zeros(scored.brain.shape, bool)
    one[0, :, 1] = True
    row = measure_volume(replace(scored, brain=one), lesioned, 0.4)
    assert (row.slice_auroc, row.slice_auprc) == (None, None)
    assert row.auroc == 0.0


def test_the_threshold_is_chosen_on_the_volumes_that_have_a_lesion(scored, lesioned, tmp_path):
    healthy, asked, steps = Case(tmp_path / "h.nii", "h", "h", "validation"), [], []

    def method(path):
        asked.append(path.name)
        return scored

    level = validation_threshold(method, [healthy, lesioned], lambda: steps.append(1))
    assert (asked, len(steps)) == (["i.nii"], 2)
    assert level < 0.5 <= np.nextafter(np.float32(level), np.float32(1))
    with pytest.raises(DataError, match="no validation volume has a lesion"):
        validation_threshold(method, [healthy])


@pytest.mark.parametrize("turn", [None, "turned by 9 degrees"])
def test_features_of_a_volume_that_was_straightened_are_not_kept_as_those_of_its_file(scored, monkeypatch, turn):
    asked = []

    def features(path, stack, *, keep):
        asked.append((path, stack, keep))

    look = SimpleNamespace(turn=turn, stack="its slices", read=scored, score_map=lambda *given: scored.score_map)
    monkeypatch.setattr(evaluate, "FeatureReader", lambda network, cache: SimpleNamespace(features=features))
    monkeypatch.setattr(evaluate, "read_volume", lambda path: SimpleNamespace(voxel_ml=VOXEL_ML))
    monkeypatch.setattr(evaluate, "look_at", lambda volume, cut, calibration: look)
    monkeypatch.setattr(evaluate, "detector_log_likelihood", lambda detector, found: (None, None))
    method = evaluate.DetectorMethod(SimpleNamespace(network=None), SimpleNamespace(threshold=2.0))
    assert method("scan.nii").voxel_ml == VOXEL_ML
    assert asked == [("scan.nii", "its slices", turn is None)]


def row(lesion, volume_ml, score, auroc=None, false_positive_ml=0.0):
    return VolumeAccuracy("i", lesion, volume_ml, score, auroc, auroc, auroc, auroc, None, None, false_positive_ml)


def test_a_summary_is_of_all_lesions_each_size_each_kind_and_the_healthy():
    lesions = [row("tumour", 15, 5, 0.9), row("stroke", 4, 3, 0.7), row("stroke", 0.5, 1, 0.5)]
    healthy = [row("", 0, 2, false_positive_ml=1.0), row("", 0, 0, false_positive_ml=2.0)]
    found = summarise([*lesions, *healthy])
    sizes = {name: (group["volumes"], group["auroc"]) for name, group in found.items() if "auroc" in str(group)}
    assert sizes == {
        "all": (3, 0.7), "1 ml and more": (2, 0.8), "4 ml and more": (2, 0.8), "below 4 ml": (1, 0.5),
        "4 to 15 ml": (1, 0.7), "15 ml and more": (1, 0.9), "stroke": (2, 0.6), "tumour": (1, 0.9),
    }  # fmt: skip
    assert found["all"]["slice_auroc"] is None
    assert found["healthy"] == {"volumes": 2, "false_positive_ml": 1.5}
    assert found["volume_auroc"] == round(5 / 6, 4), "lesions score higher than healthy volumes in 5 of 6 pairs"
    assert "volume_auroc" not in summarise(lesions)
