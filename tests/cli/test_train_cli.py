"""The commands on data sets as they lie on disk, one after the other as a user types them."""

import json
import shutil

import numpy as np
import pytest
import torch
from commands import one_line, run
from trees import brats, plain, table, volume

from ssn.cli import bench, export, train
from ssn.cli.ablate import QuestionName
from ssn.core.bundle import CALIBRATION_FILE
from ssn.train.arms import QUESTIONS
from ssn.train.calibrate import load_calibration
from ssn.train.checkpoint import load_checkpoint
from ssn.train.datasets import open_split
from ssn.train.trained import open_trained


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return plain(tmp_path_factory.mktemp("healthy"), healthy=3)


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    return brats(tmp_path_factory.mktemp("patients"), subjects=2)


@pytest.fixture(scope="module")
def model(healthy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    settings = ("--encoder-weights", "none", "--loss", "none", "--epochs", 1, "--share", 0.02, "--device", "cpu")
    fitted = run(train.app, "fit", healthy, "-o", folder, *settings)
    assert fitted.exit_code == 0, fitted.output
    calibrated = run(train.app, "calibrate", folder, healthy)
    assert calibrated.exit_code == 0, calibrated.output
    return folder


def test_a_model_fitted_on_a_folder_is_measured_on_brats(model, patients, tmp_path):
    result = run(train.app, "evaluate", model, patients, "--contrast", "t1", "-o", tmp_path / "a.json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "a.json").read_text())["volumes"]
    assert row["lesion"] == "tumour"
    assert row["volume_ml"] == pytest.approx(17, rel=0.25), "known from the mask, in millilitres of its voxels"
    assert 0 <= row["auroc"] <= 1


def test_features_are_whitened_as_the_preset_says_or_as_asked(model, healthy, tmp_path):
    settings = ("--encoder-weights", "none", "--loss", "none", "--epochs", 1, "--share", 0.02, "--device", "cpu")
    plainly = run(
        train.app, "fit", healthy, "-o", tmp_path / "plain", "--no-whiten", "--cache", model / "features", *settings
    )
    assert plainly.exit_code == 0, plainly.output
    whitening = {folder: load_checkpoint(folder).network.whitening for folder in (model, tmp_path / "plain")}
    identity = torch.eye(len(whitening[model]))
    assert not torch.allclose(whitening[model], identity), "measured on the training volumes: the compact preset's"
    assert torch.equal(whitening[tmp_path / "plain"], identity)


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    assert run(export.app, "onnx", model, "-o", folder).exit_code == 0
    return folder


def test_a_bundle_is_measured_as_the_checkpoint_that_it_was_made_of(model, bundle, healthy, patients, tmp_path):
    rows, origins = {}, []
    for folder in (model, bundle):
        out = tmp_path / f"{folder.name}.json"
        options = ("--contrast", "t1", "--own-threshold", "--device", "cpu", "-o", out)
        result = run(train.app, "evaluate", folder, patients, *options)
        assert result.exit_code == 0, result.output
        found = json.loads(out.read_text())
        rows[folder] = found["volumes"]
        assert len(rows[folder]) == 2, "the half that a threshold could have been chosen on is measured as well"
        origins.append((found["threshold_from"], found["threshold"]))
    assert origins == [("healthy", load_calibration(model).threshold)] * 2
    for ours, theirs in zip(rows[bundle], rows[model], strict=True):
        for name in ("score", "auroc", "auprc", "dice", "pro"):
            assert ours[name] == pytest.approx(theirs[name], abs=2e-3), name
    result = run(
        bench.app, "accuracy", bundle, patients, "--learned", healthy, "--validation", patients, "--method", "z-score",
        "--also", f"checkpoint={model}", "--contrast", "t1", "-o", tmp_path / "both.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    ours, theirs = (json.loads((tmp_path / "both.json").read_text())[name] for name in ("ssn", "checkpoint"))
    assert ours["summary"]["all"]["auprc"] == pytest.approx(theirs["summary"]["all"]["auprc"], abs=2e-3)
    assert ours["thresholds"]["healthy"] == theirs["thresholds"]["healthy"]


def test_a_threshold_is_not_chosen_on_the_volumes_that_it_is_measured_on(model, patients, tmp_path):
    (test,) = open_split(patients, "test", contrast="t1")
    chosen = table(tmp_path, f"{test.image},{test.mask},validation")
    options = ("--contrast", "t1", "--validation", chosen, "-o", tmp_path / "a.json")
    result = run(train.app, "evaluate", model, patients, *options)
    assert result.exit_code == 1
    assert "keep it in one" in result.stderr
    assert not (tmp_path / "a.json").exists()


def test_a_threshold_has_one_origin(model, patients, tmp_path):
    both = ("--own-threshold", "--validation", patients)
    result = run(train.app, "evaluate", model, patients, "--contrast", "t1", *both, "-o", tmp_path / "a.json")
    assert result.exit_code == 1
    assert "leave out one" in result.stderr
    assert not (tmp_path / "a.json").exists()


def test_references_learn_from_one_data_set_and_all_are_measured_on_another(model, healthy, patients, tmp_path):
    wanted = ("--learned", healthy, "--validation", patients, "--contrast", "flair", "-o", tmp_path / "a.json")
    found, written = [], []
    for force in ((), ("--force",)):
        result = run(bench.app, "accuracy", model, patients, *wanted, "--cache", tmp_path / "measured", *force)
        assert result.exit_code == 0, result.output
        found.append(json.loads((tmp_path / "a.json").read_text()))
        written.append({path.name: path.stat().st_mtime_ns for path in (tmp_path / "measured").iterdir()})
    assert set(found[0]) == {"ssn", "z-score", "pca"}
    assert len(written[0]) == 3
    assert (found[1], written[1]) == (found[0], written[0]), "seconds too: nothing was measured again"


def test_a_contrast_that_was_not_chosen_is_one_clear_line(model, patients, tmp_path):
    result = run(train.app, "evaluate", model, patients, "-o", tmp_path / "a.json")
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "--contrast" in result.stderr
    assert not (tmp_path / "a.json").exists()


def test_an_ablation_that_cannot_be_measured_is_refused_before_any_training(healthy, patients, tmp_path):
    assert tuple(QuestionName) == QUESTIONS
    out = tmp_path / "out"
    for arguments, message in (
        ((healthy,), "no volume in split 'validation'"),
        ((healthy, "--measure-on", patients), "--contrast"),
        ((healthy, "--question", "encoder"), "--tuned FILE"),
    ):
        result = run(train.app, "ablate", *arguments, "-o", out)
        assert result.exit_code == 1
        assert message in result.stderr
    assert run(train.app, "ablate", healthy, "--question", "colour", "-o", out).exit_code == 2
    assert not out.exists()


def test_volumes_that_a_model_was_trained_on_neither_calibrate_nor_measure_it(model, healthy, patients, tmp_path):
    learned = open_split(healthy, "train")[0].image
    data = table(tmp_path, f"{learned},,calibration")
    for result in (run(train.app, "calibrate", model, data), _measured(model, learned, patients, tmp_path / "other")):
        assert result.exit_code == 1, result.output
        assert f"{learned}: is in split" in result.stderr
        assert "was trained on it" in result.stderr


def _measured(model, image, patients, folder):
    folder.mkdir()
    sick = open_split(patients, "test", contrast="t1")[0]
    rows = (f"{image},,test,t1", f"{sick.image},{sick.mask},test,t1")
    data = table(folder, *rows, columns="image,mask,split,contrast")
    return run(train.app, "evaluate", model, data, "--own-threshold")


def test_a_checkpoint_in_a_folder_that_cannot_be_written_to_is_measured(model, monkeypatch):
    from ssn.core.errors import OutputError
    from ssn.train import trained

    def read_only(folder):
        raise OutputError(f"{folder}: Permission denied")

    monkeypatch.setattr(trained, "check_folder", read_only)
    assert trained.open_trained(model)._reader._cache is None


@pytest.fixture
def other_heads(tmp_path):
    rows = [f"{volume(tmp_path / f'u{number}.nii.gz', 70 + number)},,calibration" for number in range(2)]
    return table(tmp_path, *rows)


def test_threshold_and_volume_scores_are_those_of_heads_that_another_model_has_not_seen(
    model, bundle, healthy, other_heads, tmp_path
):
    own = shutil.copytree(model, tmp_path / "own")
    for other in (model, bundle):
        given = ("--unseen", f"{other}={other_heads}")
        result = run(train.app, "calibrate", own, healthy, *given, "--device", "cpu")
        assert result.exit_code == 0, result.output
        assert "(0.50% of --unseen's healthy brain above it)" in result.output.replace("\n", " ")
        before, after = load_calibration(model), load_calibration(own)
        np.testing.assert_array_equal(after.mean, before.mean, "z-scores stay those against the data set's volumes")
        method = open_trained(other, "cpu")
        asked = [method(case.image) for case in open_split(other_heads, "calibration")]
        inside = np.concatenate([found.score_map[found.brain] for found in asked])
        assert after.threshold == pytest.approx(np.quantile(inside, 1 - after.threshold_rate), abs=0.02)
        np.testing.assert_allclose(after.healthy_scores, sorted(found.score for found in asked), rtol=1e-5)


def test_what_cannot_stand_for_another_head_is_refused_and_the_calibration_stays(model, healthy, other_heads, tmp_path):
    own = shutil.copytree(model, tmp_path / "own")
    before = (own / CALIBRATION_FILE).read_bytes()
    learned = open_split(healthy, "train")[0].image
    (tmp_path / "learned").mkdir()
    known = table(tmp_path / "learned", f"{learned},,calibration")
    for given, message in (
        (("--unseen", other_heads), "expected MODEL=DATA"),
        (("--unseen", f"{model}={other_heads}", "--sigma", 3), "its map has a Gaussian of 4 mm, not 3"),
        (("--unseen", f"{model}={known}"), "was trained on it"),
    ):
        one_line(run(train.app, "calibrate", own, healthy, *given, "--device", "cpu"), message)
    assert (own / CALIBRATION_FILE).read_bytes() == before
