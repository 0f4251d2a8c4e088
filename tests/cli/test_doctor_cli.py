import importlib.util
import json
import shutil

import pytest
from brains import brain_file
from typer.testing import CliRunner
from written_engines import machine, write

from ssn.cli.export import app as export_app
from ssn.cli.infer import app as infer_app
from ssn.core.bundle import FLOW_FILE, load_bundle
from ssn.runtime.cuda import find_device
from ssn.runtime.doctor import as_lines, diagnose

run = CliRunner().invoke


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.mark.parametrize(("app", "arguments"), [(export_app, ["doctor"]), (infer_app, ["--doctor"])])
def test_a_report_that_cannot_be_printed_ends_in_a_line(app, arguments, monkeypatch):
    def full(report):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssn.runtime.doctor.as_lines", full)
    result = run(app, arguments)
    assert result.exit_code == 1
    assert result.stderr == "Error: No space left on device\n"


def test_both_doctors_say_the_same_of_this_machine(bundle):
    for result in (
        run(export_app, ["doctor", str(bundle)]),
        run(infer_app, ["--doctor", "--model", str(bundle)]),
    ):
        assert result.exit_code == 0, result.output
        assert "hashes verified" in result.stdout
        assert "would run" in result.stdout
    reports = [
        json.loads(run(app, arguments).stdout)
        for app, arguments in (
            (export_app, ["doctor", str(bundle), "--json"]),
            (infer_app, ["--doctor", "--model", str(bundle), "--json"]),
        )
    ]
    assert reports[0] == reports[1]
    assert reports[0]["would_run"]


def test_a_damaged_bundle_and_a_missing_one_are_reported_and_not_raised(bundle, tmp_path):
    with (bundle / FLOW_FILE).open("ab") as stream:
        stream.write(b"x")
    for folder, reason in ((bundle, "was modified"), (tmp_path / "nowhere", "not a model bundle")):
        result = run(export_app, ["doctor", str(folder)])
        assert result.exit_code == 1, "nothing would run"
        assert reason in result.stdout
        as_json = run(infer_app, ["--doctor", "--model", str(folder), "--json"])
        assert as_json.exit_code == 1
        assert reason in json.loads(as_json.stdout)["bundle"]["problem"]
        report = diagnose(folder, machine(None))
        assert report["would_run"] is None
        assert reason in report["bundle"]["problem"]


def test_an_engine_is_told_from_a_modified_one(bundle):
    folder = write(load_bundle(bundle))
    report = diagnose(bundle, machine())
    assert report["engines"] == [{"engine": folder.name, "problem": None}]
    assert report["would_run"] == f"tensorrt on cuda, engine {folder.name}"
    (folder / "flow.engine").write_bytes(b"wolf")
    report = diagnose(bundle, machine())
    assert "modified" in report["engines"][0]["problem"]
    assert report["would_run"] == "onnxruntime on cpu"
    assert any("modified" in said for what, said in as_lines(report) if what == "engine")
    (folder / "record.json").write_text("{")
    assert "damaged" in diagnose(bundle, machine())["engines"][0]["problem"]


def test_a_gpu_that_was_asked_for_and_is_not_there_is_one_clear_line(bundle, tmp_path):
    if find_device()[0] is not None:
        pytest.skip("there is a GPU here")
    scan = brain_file(tmp_path / "scan.nii")
    for options in (["--device", "cuda"], ["--backend", "tensorrt"], ["--memory-limit", "500"]):
        result = run(infer_app, [str(scan), "-o", str(tmp_path / "out"), "--model", str(bundle), *options])
        assert result.exit_code == 1
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert result.stderr.startswith("Error: ")
        assert not (tmp_path / "out").exists()


def test_verbose_says_what_computes_and_why(bundle, tmp_path):
    scan = brain_file(tmp_path / "scan.nii")
    options = ["-o", str(tmp_path / "out"), "--model", str(bundle), "--no-png", "--verbose", "--device", "cpu"]
    result = run(infer_app, [str(scan), *options])
    assert result.exit_code == 0, result.output
    assert "Computes: " in result.stderr
    used = json.loads((tmp_path / "out" / "scan.json").read_text())["backend"]["backend"]
    assert f"Computes: {used} on cpu" in result.stderr
    if importlib.util.find_spec("openvino") is not None:
        assert "times as fast as onnxruntime here, measured" in result.stderr
