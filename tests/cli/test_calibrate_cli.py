"""`ssn-export calibrate` as a user types it."""

import gzip
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from brains import brain_file
from commands import run

from ssn.cli import infer, train
from ssn.cli.calibrate import volume_threshold
from ssn.cli.export import app
from ssn.core.bundle import CALIBRATION_FILE, ENCODER_FILE, FLOW_FILE, load_bundle
from ssn.core.hashed_files import file_sha256
from ssn.core.onnx_data import weights
from ssn.core.scoring import p_value
from ssn.runtime.align import SHARE
from ssn.train.calibrate import load_calibration
from ssn.train.checkpoint import save_checkpoint


def calibrate(bundle, *arguments):
    return run(app, "calibrate", "--model", bundle, *arguments, "--backend", "onnxruntime", "--threads", 1)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    for seed in range(5):
        brain_file(folder / f"s{seed}.nii.gz", (5.0, 5.0, 5.0), lesion=False, seed=seed)
    return folder


@pytest.fixture(scope="module")
def calibrated(tiny_bundle, scans, tmp_path_factory):
    source = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("source") / "tiny")
    manifest = json.loads((source / "bundle.json").read_text())
    (source / "bundle.json").write_text(json.dumps(manifest | {"accuracy": {"all": {"auroc": 0.9}}}))
    folder = tmp_path_factory.mktemp("calibrated") / "ours"
    result = calibrate(source, scans, "-o", folder)
    assert result.exit_code == 0, result.output
    assert "(the highest of 5 healthy volumes). Fewer than 19 volumes cannot tell 5 %" in result.stdout
    return load_bundle(source), load_bundle(folder)


def test_the_new_bundle_has_the_same_networks_and_a_whitening_and_statistics_of_its_own(calibrated):
    old, new = calibrated
    assert new.read(ENCODER_FILE) == old.read(ENCODER_FILE)
    before, after = (weights(one.read(FLOW_FILE)) for one in (old, new))
    differ = {name for name, values in before.items() if not np.array_equal(values, after[name])}
    assert differ == {"whitening.weight", "whitening.bias"}
    assert new.digest != old.digest
    assert new.calibration.healthy_scores.size == 5
    assert new.calibration.sigma == old.calibration.sigma
    assert new.calibration.threshold_rate == old.calibration.threshold_rate
    assert not np.allclose(new.calibration.mean, old.calibration.mean, atol=0.05)


def test_a_volume_that_the_bundle_was_trained_on_is_named(tiny_bundle, scans, tmp_path):
    source = shutil.copytree(tiny_bundle, tmp_path / "tiny")
    manifest = json.loads((source / "bundle.json").read_text())
    learned = {"made_of": {"volumes": [file_sha256(scans / "s3.nii.gz")]}}
    (source / "bundle.json").write_text(json.dumps(manifest | {"training": learned}))
    result = calibrate(source, scans, "-o", tmp_path / "ours")
    assert result.exit_code == 1
    first, last = result.stderr.strip().splitlines()
    assert first == f"Error: {scans / 's3.nii.gz'}: {manifest['model']['name']} was trained on it; leave it out"
    assert "1 of 5 volumes are not usable" in last
    assert not (tmp_path / "ours").exists()


def test_a_healthy_volume_that_lies_otherwise_than_the_others_is_named(tiny_bundle, scans, tmp_path):
    mixed = shutil.copytree(scans, tmp_path / "mixed")
    image = nib.load(mixed / "s3.nii.gz")
    turned = np.asarray(image.dataobj)[:, :, ::-1].copy()
    nib.save(nib.Nifti1Image(turned, image.affine), mixed / "s3.nii.gz")
    result = calibrate(tiny_bundle, mixed, "-o", tmp_path / "ours")
    assert result.exit_code == 0, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(
        f"Warning: {mixed / 's3.nii.gz'}: it is more like the other volumes when it is turned upside"
    )


def test_a_name_of_another_contrast_and_a_header_that_does_not_say_left_are_said(tiny_bundle, scans, tmp_path):
    mixed = shutil.copytree(scans, tmp_path / "mixed")
    (mixed / "s1.nii.gz").rename(mixed / "s1_T2w.nii.gz")
    image = nib.load(mixed / "s2.nii.gz")
    image.set_sform(None, 0), image.set_qform(None, 0)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), mixed / "s2.nii.gz")
    result = calibrate(tiny_bundle, mixed, "--no-align", "-o", tmp_path / "ours")
    assert result.exit_code == 0, result.output
    warnings = result.stderr.splitlines()
    (contrast,) = (line for line in warnings if "s1_T2w.nii.gz: its name says t2, and the model knows t1 only" in line)
    assert contrast.endswith("or say which these are with --modality")
    assert any("s2.nii.gz: its header does not say how it lies" in line for line in warnings)


def test_volumes_that_the_bundle_would_not_know_are_named(calibrated, scans, tmp_path):
    reversed_contrast = tmp_path / "t2"
    reversed_contrast.mkdir()
    for path in scans.iterdir():
        image = nib.load(path)
        data = np.asarray(image.dataobj)
        nib.save(nib.Nifti1Image(np.where(data > 0, 1000 - data, 0), image.affine), reversed_contrast / path.name)
    result = calibrate(calibrated[1].folder, reversed_contrast, "-o", tmp_path / "ours")
    assert result.exit_code == 0, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 5
    assert all("do not lie as those of the healthy t1 volumes" in line for line in lines)
    result = calibrate(calibrated[1].folder, reversed_contrast, "-o", tmp_path / "t2-model", "--modality", "t2")
    assert (result.exit_code, result.stderr) == (0, "")
    other = load_bundle(tmp_path / "t2-model")
    assert other.spec.modality == "t2"
    assert other.manifest["calibration"]["aligned"] == 1, "all of the way: another contrast has more to undo"
    result = run(
        infer.app, reversed_contrast / "s0.nii.gz", "-o", tmp_path / "out", "--model", tmp_path / "t2-model", "--no-png"
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "s0.json").read_text())["input"]["doubts"] == []


def test_enough_volumes_are_not_doubted(tiny_calibration):
    few, enough = (replace(tiny_calibration, healthy_scores=np.ones(n, np.float32)) for n in (18, 19))
    assert "cannot tell" in volume_threshold(few)
    assert "cannot tell" not in volume_threshold(enough)


@pytest.mark.parametrize("count", [5, 18, 19, 20, 39, 40, 60, 99, 100])
def test_a_volume_is_above_the_threshold_where_its_p_value_is_low(tiny_calibration, count):
    scores = np.sort(np.random.default_rng(count).normal(size=count)).astype(np.float32)
    level = replace(tiny_calibration, healthy_scores=scores).volume_threshold
    lowest = max(0.05, 1 / (count + 1))
    for score in [*scores.tolist(), *(scores + 1e-4).tolist()]:
        assert (score > level) == (p_value(score, scores) <= lowest), score


def test_its_record_says_what_was_calibrated_when_and_on_how_much(calibrated, scans):
    old, new = calibrated
    record = new.manifest["calibration"]
    assert record["volumes"] == 5
    assert record["aligned"] == SHARE
    assert record["of_bundle"] == {"name": "tiny", "sha256": old.digest}
    assert len(record["date"]) == len("2026-11-25")
    assert len(set(record["volume_sha256"])) == 5
    assert str(scans) not in json.dumps(new.manifest), "folders can name patients"
    assert new.spec.name == "ours"
    assert new.manifest["training"] == old.manifest["training"]
    assert "accuracy" not in new.manifest, "it was measured with the old calibration"


def test_without_alignment_it_calibrates_to_what_ssn_train_calibrates_to(
    tiny_detector, tiny_calibration, tiny_bundle, scans, tmp_path
):
    assert calibrate(tiny_bundle, scans, "-o", tmp_path / "ours", "--no-align").exit_code == 0
    plain = load_bundle(tmp_path / "ours")
    assert plain.read(FLOW_FILE) == load_bundle(tiny_bundle).read(FLOW_FILE)
    assert plain.manifest["calibration"]["aligned"] == 0
    save_checkpoint(tmp_path / "model", tiny_detector)
    table = ["image,mask,split", *(f"{path},,calibration" for path in sorted(scans.iterdir()))]
    (tmp_path / "healthy.csv").write_text("\n".join(table))
    settings = ("--sigma", tiny_calibration.sigma, "--rate", tiny_calibration.threshold_rate, "--device", "cpu")
    result = run(train.app, "calibrate", tmp_path / "model", tmp_path / "healthy.csv", *settings)
    assert result.exit_code == 0, result.output
    ours, theirs = plain.calibration, load_calibration(tmp_path / "model")
    # The checkpoint's way keeps features in half precision.
    np.testing.assert_allclose(ours.mean, theirs.mean, atol=5e-3)
    np.testing.assert_allclose(ours.deviation, theirs.deviation, atol=5e-3)
    np.testing.assert_allclose(ours.healthy_scores, theirs.healthy_scores, rtol=0.02)
    assert ours.gain == pytest.approx(theirs.gain, rel=0.01)
    assert ours.threshold == pytest.approx(theirs.threshold, abs=0.05)


def test_ssn_infer_takes_the_new_bundle_and_compares_with_the_new_volumes(calibrated, scans, tmp_path):
    result = run(infer.app, scans / "s0.nii.gz", "-o", tmp_path, "--model", calibrated[1].folder, "--no-png")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "s0.json").read_text())
    assert record["volume"]["healthy_volumes"] == 5
    assert (record["bundle"]["name"], record["bundle"]["sha256"]) == ("ours", calibrated[1].digest)


def test_too_few_volumes_are_refused_before_any_computing(tiny_bundle, scans, tmp_path):
    result = calibrate(tiny_bundle, *sorted(scans.iterdir())[:4], "-o", tmp_path / "new")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: 4 healthy volumes are too few")
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_every_volume_that_is_not_usable_is_named_and_nothing_is_written(tiny_bundle, scans, tmp_path):
    folder = shutil.copytree(scans, tmp_path / "healthy")
    (folder / "cut.nii.gz").write_bytes((folder / "s0.nii.gz").read_bytes()[:3000])
    (folder / "twin.nii").write_bytes(gzip.decompress((folder / "s1.nii.gz").read_bytes()))
    result = calibrate(tiny_bundle, folder, folder / "missing.nii", "-o", tmp_path / "new")
    assert result.exit_code == 1
    cut, twin, missing, last = result.stderr.strip().splitlines()
    assert "cut.nii.gz" in cut
    assert "twin.nii: is the same image as" in twin
    assert "missing.nii" in missing
    assert "3 of 8 volumes are not usable, so nothing is calibrated" in last
    assert {path.name for path in tmp_path.iterdir()} == {"healthy"}


def test_nothing_is_overwritten_without_force(calibrated, scans, tmp_path):
    folder = shutil.copytree(calibrated[1].folder, tmp_path / "mine")
    before = (folder / CALIBRATION_FILE).read_bytes()
    result = calibrate(folder, scans, "-o", folder)
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert (folder / CALIBRATION_FILE).read_bytes() == before
    (folder / "MODEL_CARD.md").write_text("AUROC 0.9")
    (folder / "notes.txt").write_text("scanner 3")
    (folder / "engines" / "one").mkdir(parents=True)
    assert calibrate(folder, scans, "-o", folder, "--force").exit_code == 0
    assert (folder / "notes.txt").read_text() == "scanner 3"
    assert not (folder / "MODEL_CARD.md").exists(), "it tells of the old calibration"
    assert not (folder / "engines").exists(), "what they had to prove was measured with the old one"
    again = load_bundle(folder)
    assert again.manifest["calibration"]["of_bundle"]["sha256"] == calibrated[1].digest
    (tmp_path / "notes").mkdir()
    assert "not a model bundle" in calibrate(folder, scans, "-o", tmp_path / "notes", "--force").stderr
    for target in (folder, tmp_path / "nowhere"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(target)
        assert "link: is a link" in calibrate(folder, scans, "-o", tmp_path / "link", "--force").stderr


def test_no_torch_is_loaded(tiny_bundle, scans, tmp_path):
    script = (
        "import sys\nfrom ssn.cli.export import app\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print(sorted({'torch', 'onnx', 'timm', 'FrEIA', 'sklearn'} & {n.split('.')[0] for n in sys.modules}))"
    )
    arguments = ("calibrate", "--model", tiny_bundle, scans, "-o", tmp_path / "new", "--backend", "onnxruntime")
    command = [sys.executable, "-c", script, *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
