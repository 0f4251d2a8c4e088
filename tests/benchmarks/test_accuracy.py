"""Accuracy of several methods: thresholds that never mix, a control for the scanner, files written whole."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from brains import save
from commands import one_line, run
from PIL import Image
from trees import ZOOMS, mask, plain, volume

from ssn.benchmarks.accuracy import suite
from ssn.benchmarks.accuracy.backbone import Backbone
from ssn.benchmarks.accuracy.measured import (
    HEALTHY_QUANTILE,
    Splits,
    candidate_thresholds,
    healthy_sample,
    measure,
    voxels_above,
)
from ssn.benchmarks.accuracy.methods import all_methods
from ssn.cli import bench, train
from ssn.core.bundle import CALIBRATION_FILE
from ssn.core.errors import DataError, SsnError
from ssn.core.metrics import voxel_auprc, voxel_auroc
from ssn.core.volume import read_volume
from ssn.train.calibrate import load_calibration
from ssn.train.cases import Case
from ssn.train.checkpoint import RECORD_FILE, WEIGHTS_FILE, load_checkpoint
from ssn.train.evaluate import DetectorMethod, ScoredVolume, lesion_mask
from ssn.train.references import healthy_blocks, intensity_method, reference_method, residual_method
from ssn.train.trained import model_digests


def quiet(what, step, steps):
    assert 1 <= step <= steps, what


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Volumes by what they are; lesions are bright."""
    root = tmp_path_factory.mktemp("cases")

    def healthy(split, seeds):
        return [Case(volume(root / f"{split}{s}.nii.gz", s), f"{split}{s}", f"{split}{s}", split) for s in seeds]

    def lesioned(split, seeds):
        return [
            Case(
                volume(root / f"{split}{s}.nii.gz", s, lesion=True), f"{split}{s}", f"{split}{s}", split,
                mask(root / f"{split}{s}-mask.nii.gz", radius=12 + s % 7), ("tumour", "stroke")[s % 2],
            )
            for s in seeds
        ]  # fmt: skip

    return {
        "train": healthy("train", range(4)),
        "calibration": healthy("calibration", range(10, 12)),
        "validation": lesioned("validation", range(20, 22)),
        "test": lesioned("test", range(30, 33)) + healthy("test", range(40, 42)),
        "control": healthy("control", range(50, 52)),
    }


def splits(cases, **changed):
    given = {name: cases[name] for name in ("calibration", "validation", "test")}
    return Splits(**given | {"controls": {}} | changed)


BRIGHT = intensity_method(bright=True, sigma=4.0)


def test_the_healthy_only_threshold_comes_from_healthy_volumes_alone(cases):
    with_all = measure("bright", BRIGHT, splits(cases), {}, quiet)
    with_less = measure(
        "bright", BRIGHT, splits(cases, validation=cases["validation"][:1], test=cases["test"][2:]), {}, quiet
    )
    assert with_all.thresholds.healthy == with_less.thresholds.healthy
    maps = [BRIGHT(case.image) for case in cases["calibration"]]
    values = np.concatenate([scored.score_map[scored.brain] for scored in maps])
    above = (values > with_all.thresholds.healthy).mean()
    assert above == pytest.approx(1 - HEALTHY_QUANTILE, abs=0.003), "that share of healthy brain lies above"


def test_a_mask_of_the_whole_brain_is_refused_by_its_name(tmp_path):
    brain = np.ones((4, 4, 4), bool)
    path = save(tmp_path / "all.nii", brain, np.eye(4), np.uint8)
    scored = ScoredVolume(np.zeros(brain.shape, np.float32), brain, 0.0, 0.001)
    with pytest.raises(DataError, match=r"all\.nii: leaves no healthy voxel in the brain"):
        lesion_mask(Case(path, "all.nii", "all", "test", mask=path), scored)


def test_a_calibration_volume_with_a_lesion_is_refused(cases):
    with pytest.raises(DataError, match="validation20: has a mask"):
        measure("bright", BRIGHT, splits(cases, calibration=cases["validation"]), {}, quiet)


@pytest.mark.parametrize("bright", [True, False])
def test_no_threshold_does_better_on_the_test_volumes_than_the_oracle(cases, bright):
    found = measure("intensity", intensity_method(bright=bright, sigma=4.0), splits(cases), {}, quiet)
    all_lesions = found.as_json()["summary"]["all"]
    assert all_lesions["dice_oracle"] >= max(all_lesions["dice"], all_lesions["dice_healthy"])


def test_dice_at_each_threshold_is_that_of_the_mask_above_it(cases):
    found = measure("bright", BRIGHT, splits(cases), {}, quiet)
    case, row = cases["test"][0], found.rows[0]
    scored = BRIGHT(case.image)
    lesion = lesion_mask(case, scored) & scored.brain
    for name, threshold in (("dice_healthy", found.thresholds.healthy), ("dice_oracle", found.thresholds.oracle)):
        predicted = (scored.score_map > threshold) & scored.brain
        expected = 2 * (predicted & lesion).sum() / (predicted.sum() + lesion.sum())
        assert getattr(row, name) == pytest.approx(expected, abs=1e-6), name
    assert row.false_positive_ml_healthy == pytest.approx(
        ((scored.score_map > found.thresholds.healthy) & scored.brain & ~lesion).sum() * scored.voxel_ml
    )


def test_pooled_areas_are_those_of_the_voxels_themselves(cases):
    one = splits(cases, test=[cases["test"][0]])
    found = measure("bright", BRIGHT, one, {}, quiet)
    scored = BRIGHT(cases["test"][0].image)
    lesion = lesion_mask(cases["test"][0], scored)
    assert found.pooled.auroc() == pytest.approx(voxel_auroc(scored.score_map, lesion, scored.brain), abs=0.002)
    assert found.pooled.auprc() == pytest.approx(voxel_auprc(scored.score_map, lesion, scored.brain), abs=0.02)


def test_scores_beyond_everything_seen_before_are_still_counted():
    score_map = np.array([0.0, 1.0, 5.0, 1e6], np.float32).reshape(4, 1, 1)
    scored = ScoredVolume(score_map, np.ones((4, 1, 1), bool), 0.0, 1.0)
    thresholds = candidate_thresholds(np.float32([0, 0.5, 1]), np.float32([0.5, 1]), (0.7,))
    lesion, other = voxels_above(scored, score_map > 1, thresholds)
    assert (lesion[0], other[0]) == (2, 2), "all voxels"
    assert (lesion[-1], other[-1]) == (2, 0), "even above the highest threshold"


def test_the_control_tells_a_method_that_measures_the_source(cases):
    def by_file(path: Path) -> ScoredVolume:
        """Score a volume high because of where it comes from."""
        data = read_volume(path)
        brain = data.data > 0
        values = data.data / data.data.max() + np.float32(5 if "control" in path.name else 0)
        return ScoredVolume.of(np.where(brain, values, 0).astype(np.float32), brain, data)

    controls = {"elsewhere": cases["control"], "same": [case for case in cases["test"] if case.mask is None]}
    found = measure("by file", by_file, splits(cases, controls=controls), {}, quiet).controls
    assert found["elsewhere"]["auroc_against_healthy"] == 1.0, "healthy volumes that score like lesions"
    assert found["elsewhere"]["auroc_of_lesions"] == 0.0
    assert found["elsewhere"]["false_positive_ml_healthy"] > 100, "the whole brain is above the healthy threshold"
    assert found["same"]["auroc_against_healthy"] == 0.5


def test_bright_and_dark_voxels_are_opposites_and_find_the_bright_lesion(cases):
    case = cases["test"][0]
    areas = []
    for bright in (True, False):
        scored = intensity_method(bright=bright, sigma=4.0)(case.image)
        areas.append(voxel_auroc(scored.score_map, lesion_mask(case, scored), scored.brain))
    assert areas[0] > 0.9
    assert sum(areas) == pytest.approx(1, abs=0.02)


def test_an_autoencoder_reconstructs_what_it_was_trained_on_and_not_the_lesion(cases):
    pytest.importorskip("monai", reason="the 3D autoencoder is MONAI's (extra bench)")
    from ssn.benchmarks.accuracy.autoencoder import AutoencoderBudget, fit_autoencoder

    healthy = healthy_blocks([case.image for case in cases["train"]])
    untaught, taught = (fit_autoencoder(healthy, AutoencoderBudget(epochs=epochs)) for epochs in (1, 15))
    assert taught(healthy[0]).mean() < 0.5 * untaught(healthy[0]).mean(), "it learns"
    scored = residual_method(taught, 4.0)(cases["test"][0].image)
    assert voxel_auroc(scored.score_map, lesion_mask(cases["test"][0], scored), scored.brain) > 0.7


def test_table_and_pictures_lie_beside_the_json_and_no_temporary_file_is_left(cases, tmp_path, tmp_path_factory):
    healthy = healthy_blocks([case.image for case in cases["train"]])
    builds = {"bright voxels": lambda: BRIGHT, "z-score": lambda: reference_method("z-score", healthy, 4.0)}
    wanted = splits(cases, controls={"elsewhere": cases["control"]})
    model = tmp_path_factory.mktemp("model")
    for name in (WEIGHTS_FILE, RECORD_FILE, CALIBRATION_FILE):
        (model / name).write_text(name)
    results = suite.compare(lambda tell: builds, wanted, tmp_path / "a.json", quiet, models={"z-score": model})
    assert [row.get("model") for row in results.values()] == [None, model_digests(model)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-curves.png", "a-montage.png", "a.json", "a.md"]
    assert json.loads((tmp_path / "a.json").read_text()) == results
    table = (tmp_path / "a.md").read_text()
    assert "oracle (not to be used)" in table
    assert "| elsewhere | z-score | 2 |" in table
    for name in ("a-curves.png", "a-montage.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("L"), float)
        assert pixels.std() > 10, f"{name} shows something"


def test_several_processes_measure_the_same_and_the_table_keeps_its_order(cases, tmp_path):
    make = partial(
        all_methods, {}, ["z-score", "pca", "dark voxels"], [case.image for case in cases["train"]], Backbone(), 4.0
    )
    one, two = (suite.compare(make, splits(cases), tmp_path / f"{n}.json", quiet, processes=n) for n in (1, 2))
    assert list(two) == list(one) == ["z-score", "pca", "dark voxels"]
    for name, result in two.items():  # sums over other numbers of threads differ in their last digits
        assert result["thresholds"] == pytest.approx(one[name]["thresholds"], rel=1e-4)
        assert result["summary"]["all"] == pytest.approx(one[name]["summary"]["all"], abs=1e-3)


def test_what_is_cut_off_leaves_what_it_measured(cases, tmp_path):
    def broken():
        raise DataError("no such thing")

    with pytest.raises(DataError):
        suite.compare(
            lambda tell: {"bright voxels": lambda: BRIGHT, "b": broken}, splits(cases), tmp_path / "a.json", quiet
        )
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["bright voxels"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_failure_costs_no_method_that_was_begun(cases, tmp_path):
    """The first of the pair takes longer than the second takes to fail."""
    with pytest.raises(DataError, match="no such thing"):
        suite.compare(partial(_of_two, "fails"), splits(cases), tmp_path / "a.json", quiet, processes=2)
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["bright voxels"]


def test_a_process_that_is_killed_is_one_clear_error(cases, tmp_path):
    with pytest.raises(SsnError, match="a process was killed, probably because memory was short"):
        suite.compare(partial(_of_two, "dies"), splits(cases), tmp_path / "a.json", quiet, processes=2)


def _of_two(how, tell):
    def other():
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise DataError("no such thing")

    return {"bright voxels": lambda: BRIGHT, "other": other}


def test_the_shown_slices_are_of_different_kinds_and_cut_the_lesion(cases):
    from ssn.benchmarks.accuracy.pictures import choose_slices

    shown = choose_slices(cases["test"])
    assert {item.case.lesion for item in shown[:2]} == {"tumour", "stroke"}
    assert all(item.mask.any() for item in shown)
    assert shown[0].zooms == ZOOMS[:2]


def test_controls_of_one_name_stay_apart(tmp_path):
    first, second = (plain(tmp_path / folder / "healthy", healthy=number) for folder, number in (("a", 1), ("b", 2)))
    assert {name: len(cases) for name, cases in suite.open_controls([first]).items()} == {"healthy": 1}
    assert [len(cases) for cases in suite.open_controls([first, second]).values()] == [1, 2]


def test_a_control_without_a_healthy_volume_is_refused(tmp_path):
    (tmp_path / "masks").mkdir()
    volume(tmp_path / "p.nii.gz", lesion=True)
    mask(tmp_path / "masks" / "p.nii.gz")
    with pytest.raises(DataError, match="has no healthy volume"):
        suite.open_controls([tmp_path])


def test_an_existing_picture_is_not_replaced_without_force(tmp_path):
    (tmp_path / "a-montage.png").write_bytes(b"mine")
    one_line(run(bench.app, "accuracy", tmp_path, tmp_path, "-o", tmp_path / "a.json"), "a-montage.png", "--force")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    healthy = plain(root / "healthy", healthy=3)
    settings = ("--encoder-weights", "none", "--loss", "none", "--epochs", 1, "--share", 0.02, "--device", "cpu")
    for arguments in (("fit", healthy, "-o", root / "model", *settings), ("calibrate", root / "model", healthy)):
        result = run(train.app, *arguments)
        assert result.exit_code == 0, result.output
    return root / "model"


def test_another_checkpoint_that_is_none_is_named_before_anything_is_computed(model, tmp_path):
    also = ("--also", f"wide={tmp_path / 'nothing'}")
    one_line(run(bench.app, "accuracy", model, tmp_path, *also, "-o", tmp_path / "a.json"), str(tmp_path / "nothing"))
    for wrong in ("wide", "=x", f"ssn={model}"):
        one_line(
            run(bench.app, "accuracy", model, tmp_path, "--also", wrong, "-o", tmp_path / "a.json"), f"--also {wrong}"
        )
    assert not list(tmp_path.iterdir())


def test_a_trained_detector_has_the_threshold_of_its_calibration(model, cases):
    method = DetectorMethod(load_checkpoint(model), load_calibration(model))
    found = measure("ssn", method, splits(cases), {}, quiet)
    assert found.thresholds.healthy == pytest.approx(load_calibration(model).threshold)
    sample = healthy_sample(method, cases["calibration"], lambda: None)
    assert found.thresholds.healthy != pytest.approx(float(np.quantile(sample, HEALTHY_QUANTILE)))
