"""A model that is trained, calibrated and asked with each volume aligned by its own features."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from commands import one_line, run
from trees import plain, table, volume

from ssn.cli import export, infer, train
from ssn.core.bundle import CALIBRATION_FILE, FLOW_FILE, load_bundle
from ssn.core.calibrate import place_statistics
from ssn.train.calibrate import calibrate_detector, load_calibration
from ssn.train.checkpoint import load_checkpoint
from ssn.train.datasets import open_split
from ssn.train.features import FeatureReader
from ssn.train.likelihood import aligned_by_own, detector_log_likelihood

SETTINGS = ("--encoder-weights", "none", "--loss", "none", "--epochs", 1, "--share", 0.02, "--device", "cpu")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return plain(tmp_path_factory.mktemp("healthy"), healthy=3)


@pytest.fixture(scope="module")
def models(healthy, tmp_path_factory):
    """The model, and one that is trained and calibrated without, by the same volumes."""
    folder = tmp_path_factory.mktemp("models")
    for name, options in (("aligned", ("--align",)), ("plain", ())):
        fitted = run(
            train.app, "fit", healthy, "-o", folder / name, "--cache", folder / "features", *SETTINGS, *options
        )
        assert fitted.exit_code == 0, fitted.output
        assert run(train.app, "calibrate", folder / name, healthy, "--cache", folder / "features").exit_code == 0
    return folder


@pytest.fixture(scope="module")
def bundle(models):
    assert run(export.app, "onnx", models / "aligned", "-o", models / "bundle").exit_code == 0
    return models / "bundle"


def test_it_is_calibrated_on_healthy_volumes_that_are_aligned_as_those_to_come(models, healthy):
    detector, calibration = load_checkpoint(models / "aligned"), load_calibration(models / "aligned")
    assert calibration.aligned_to_itself
    assert not load_calibration(models / "plain").aligned_to_itself
    paths = [case.image for case in open_split(healthy, "calibration")]
    reader, whitening = FeatureReader(detector.network, models / "features"), detector.network.own_whitening()
    as_they_are = replace(detector, config=replace(detector.config, aligned=False))
    first = calibrate_detector(as_they_are, paths, reader, sigma=4.0, rate=0.005)
    found = [aligned_by_own(detector, reader.features(path), whitening, first) for path in paths]
    mean, deviation = place_statistics([detector_log_likelihood(detector, each) for each in found], first.mean.shape)
    np.testing.assert_allclose(calibration.mean, mean, atol=2e-3)
    np.testing.assert_allclose(calibration.deviation, deviation, rtol=2e-3, atol=1e-3)
    assert np.abs(first.mean - mean).max() > 0.05


def test_a_checkpoint_and_the_bundle_made_of_it_align_alike_and_both_unless_told_not_to(
    models, bundle, healthy, tmp_path
):
    assert load_bundle(bundle).calibration.aligned_to_itself
    rows, test = {}, table(tmp_path, f"{volume(tmp_path / 'x.nii.gz', 9)},,test")
    for model in (models / "aligned", bundle):
        for option in ("--align", "--no-align", None):
            out = tmp_path / f"{model.name}{option}.json"
            given = ("--own-threshold", "--device", "cpu", "-o", out, *([option] if option else ()))
            result = run(train.app, "evaluate", model, test, *given)
            assert result.exit_code == 0, result.output
            (row,) = json.loads(out.read_text())["volumes"]
            rows[model.name, option] = row["score"]
    for name in ("aligned", "bundle"):
        assert rows[name, None] == rows[name, "--align"] != pytest.approx(rows[name, "--no-align"], rel=0.01)
    for option in ("--align", "--no-align"):
        assert rows["aligned", option] == pytest.approx(rows["bundle", option], rel=5e-3), "half precision's rounding"
    told = run(infer.app, tmp_path / "x.nii.gz", "-o", tmp_path / "out", "--model", bundle, "--no-png", "--json")
    record = json.loads(told.stdout)
    assert record["backend"]["aligned_to_itself"] == 0.5
    assert record["volume"]["score"] == pytest.approx(rows["bundle", None], rel=5e-3)


def test_a_threshold_of_unseen_heads_is_by_models_that_align_alike(models, healthy, tmp_path):
    heads = table(tmp_path, *(f"{volume(tmp_path / f'u{n}.nii.gz', 70 + n)},,calibration" for n in range(2)))
    own = shutil.copytree(models / "aligned", tmp_path / "own")
    calibrate = partial(run, train.app, "calibrate", own, healthy, "--device", "cpu")
    before = (own / CALIBRATION_FILE).read_bytes()
    one_line(calibrate("--unseen", f"{models / 'plain'}={heads}"), "one of the two models aligns each volume")
    assert (own / CALIBRATION_FILE).read_bytes() == before
    result = calibrate("--unseen", f"{models / 'aligned'}={heads}")
    assert result.exit_code == 0, result.output
    after = load_calibration(own)
    assert after.aligned_to_itself
    assert after.healthy_scores.size == 2


@pytest.mark.parametrize("way", ["--align", "--no-align"])
def test_healthy_volumes_of_a_scanner_are_aligned_each_as_those_to_come_and_all_together_or_not(bundle, tmp_path, way):
    scans = [volume(tmp_path / f"h{n}.nii.gz", 40 + n) for n in range(5)]
    ours = tmp_path / "ours"
    assert run(export.app, "calibrate", *scans, "--model", bundle, "-o", ours, "--threads", 1, way).exit_code == 0
    made = load_bundle(ours)
    assert made.calibration.aligned_to_itself
    assert made.manifest["calibration"]["backend"]["aligned_to_itself"] == 0.5
    assert (made.read(FLOW_FILE) == load_bundle(bundle).read(FLOW_FILE)) == (way == "--no-align")
    told = run(infer.app, scans[0], "-o", tmp_path / "out", "--model", ours, "--no-png", "--json")
    assert json.loads(told.stdout)["backend"]["aligned_to_itself"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--no-whiten",), "give --whiten or another preset"), (("--tune-encoder", 1), "leave out one of them")],
)
def test_what_cannot_be_aligned_is_not_trained(healthy, tmp_path, options, message):
    one_line(run(train.app, "fit", healthy, "-o", tmp_path / "m", "--align", *SETTINGS, *options), message)
    assert not (tmp_path / "m" / "model.json").exists()


def test_a_checkpoint_that_does_not_whiten_is_not_asked_so(healthy, models, tmp_path):
    plainly = tmp_path / "plain"
    assert (
        run(
            train.app, "fit", healthy, "-o", plainly, "--no-whiten", "--cache", models / "features", *SETTINGS
        ).exit_code
        == 0
    )
    assert run(train.app, "calibrate", plainly, healthy, "--cache", models / "features").exit_code == 0
    result = run(train.app, "evaluate", plainly, healthy, "--align", "--device", "cpu", "-o", tmp_path / "a.json")
    one_line(result, "does not whiten all its features, so a volume's cannot be aligned; give --no-align")
