"""What a user can get wrong with ssn-train and ssn-export: one line, before anything is computed."""

import json
from importlib import import_module

import pytest
from brains import brain_file
from commands import one_line, run
from trees import plain, table

from ssn.cli import export, train
from ssn.train.calibrate import save_calibration
from ssn.train.checkpoint import save_checkpoint
from ssn.train.trained import model_digests


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return plain(tmp_path_factory.mktemp("healthy"), healthy=3)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    return path


@pytest.fixture(scope="module")
def checkpoint(tiny_detector, tiny_calibration, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, tiny_detector)
    save_calibration(folder, tiny_calibration)
    return folder


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_is_no_folder_to_write_into(healthy, checkpoint, file, tmp_path, inside):
    folder = file / "x" if inside else file
    settings = ("--encoder-weights", "none", "--device", "cpu")
    for command in (
        ("synth", "-o", folder),
        ("fit", healthy, "-o", folder, *settings),
        ("fit", healthy, "-o", tmp_path / "new", "--cache", folder, *settings),
        ("finetune", healthy, "-o", folder, *settings),
        ("calibrate", checkpoint, healthy, "--cache", folder, "--device", "cpu"),
    ):
        one_line(run(train.app, *command), f"{folder}: cannot be made ({file} is a file)", "another folder")
    one_line(run(export.app, "onnx", checkpoint, "-o", file / "x" / "y"), f"({file} is a file)", "another folder")
    assert file.read_text() == "precious"


def test_a_file_is_no_checkpoint(healthy, file):
    one_line(run(train.app, "calibrate", file, healthy, "--device", "cpu"), f"{file}: is not a checkpoint")


def test_a_bundle_is_no_checkpoint_and_a_checkpoint_no_bundle(healthy, checkpoint, tiny_bundle, tmp_path):
    settings = ("--device", "cpu")
    one_line(run(train.app, "calibrate", tiny_bundle, healthy, *settings), tiny_bundle, "ssn-export calibrate")
    one_line(run(export.app, "inspect", checkpoint), checkpoint, "ssn-export onnx")


def test_there_is_nothing_to_go_on_from_before_the_first_checkpoint(healthy, tmp_path):
    (tmp_path / "features").mkdir()
    settings = ("--encoder-weights", "none", "--device", "cpu")
    one_line(run(train.app, "fit", healthy, "-o", tmp_path, "--resume", *settings), tmp_path, "without --resume")


def test_the_accuracy_of_another_model_is_not_recorded(checkpoint, tiny_bundle, tmp_path):
    path = tmp_path / "accuracy.json"
    for model, words in ((["another"], (path, "another model")), (model_digests(checkpoint), ("--force",))):
        path.write_text(json.dumps({"ssn": {"summary": {}, "model": model}}))
        one_line(run(export.app, "onnx", checkpoint, "-o", tiny_bundle, "--accuracy", path), *words)


def test_the_folder_of_a_fine_tuning_is_not_its_encoder(healthy, tmp_path):
    command = ("fit", healthy, "-o", tmp_path / "new", "--encoder-weights", tmp_path, "--device", "cpu")
    one_line(run(train.app, *command), tmp_path, "encoder.safetensors")


def test_an_accuracy_file_that_cannot_be_written_is_named_before_the_checkpoint_is_looked_for(file, tmp_path):
    for output, words in (
        (file, "--force"),
        (tmp_path / "new" / "a.json", "does not exist"),
        (tmp_path, "is a folder"),
    ):
        one_line(run(train.app, "evaluate", tmp_path / "nowhere", tmp_path, "-o", output), output, words)
    assert list(tmp_path.iterdir()) == [file]


def test_seeds_beyond_what_generators_take_are_a_wrong_command_line(tmp_path):
    for command in (("synth",), ("fit", tmp_path), ("finetune", tmp_path)):
        result = run(train.app, *command, "-o", tmp_path / "out", "--seed", 99999999999999999999999)
        assert result.exit_code == 2
        assert "--seed" in result.stderr


def test_a_table_without_the_split_is_named_itself(checkpoint, healthy, tmp_path):
    path = table(tmp_path, f"{healthy / 'h0.nii.gz'},,train")
    one_line(run(train.app, "calibrate", checkpoint, path, "--device", "cpu"), f"{path}: has no volume in split")


def test_another_json_is_no_accuracy(checkpoint, tmp_path):
    path = tmp_path / "a.json"
    command = ("onnx", checkpoint, "-o", tmp_path / "bundle", "--accuracy", path)
    for content, words in (
        ({"threshold": 1, "summary": {}, "volumes": []}, "ssn-train evaluate"),
        ({}, "another JSON"),
    ):
        path.write_text(json.dumps(content))
        one_line(run(export.app, *command), path, words, "give the JSON of ssn-bench accuracy")


def test_an_existing_bundle_is_refused_before_the_export(checkpoint, tiny_bundle, monkeypatch):
    # By the module, not its name: tests of missing packages import it anew, and the package then lacks the attribute.
    module = import_module("ssn.export.onnx")
    monkeypatch.setattr(module, "export_graphs", lambda detector: pytest.fail("exported"))
    one_line(run(export.app, "onnx", checkpoint, "-o", tiny_bundle), tiny_bundle, "--force")


def test_a_checkpoint_that_cannot_be_compared_with_fails_the_check(tiny_bundle, thick_detector, tmp_path):
    scan = brain_file(tmp_path / "scan.nii", (5.0, 5.0, 5.0))
    command = ("check", tiny_bundle, "--volume", scan, "--checkpoint")
    one_line(run(export.app, *command, tmp_path / "nowhere"), f"{tmp_path / 'nowhere'}: is not a checkpoint")
    save_checkpoint(tmp_path / "thick", thick_detector)
    one_line(run(export.app, *command, tmp_path / "thick"), tmp_path / "thick", "another model", tiny_bundle)


def test_ssn_train_prints_its_version():
    result = run(train.app, "--version")
    assert result.exit_code == 0
    assert result.stdout.count(".") >= 2
