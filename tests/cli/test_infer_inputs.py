"""Which volumes `ssn-infer` takes from its command line."""

from functools import partial
from pathlib import Path

import pytest
from brains import brain_file
from commands import one_line, run

from ssn.cli.infer import app

infer = partial(run, app)


def test_a_folder_with_one_volume_has_a_table_and_a_file_given_twice_counts_once(tmp_path, tiny_bundle, monkeypatch):
    (tmp_path / "scans").mkdir()
    scan = brain_file(tmp_path / "scans" / "scan.nii", (5.0, 5.0, 5.0))
    monkeypatch.chdir(tmp_path)
    result = infer("scans", scan, "-o", "out", "--model", tiny_bundle, "--no-png")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[-1].startswith("1 volume in ")
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("arguments", [("--force", "--resume", "scan.nii"), ("--doctor", "scan.nii")])
def test_options_that_contradict_each_other_are_a_usage_error(arguments):
    assert infer(*arguments).exit_code == 2


def test_a_folder_of_dicom_files_or_of_folders_is_refused_with_what_to_give(tmp_path):
    (tmp_path / "study" / "series").mkdir(parents=True)
    (tmp_path / "study" / "series" / "IM0001.dcm").write_bytes(bytes(128) + b"DICM")
    for folder in (tmp_path / "study", tmp_path / "study" / "series"):
        one_line(infer(folder, "-o", tmp_path / "out"), folder, "folders in it are not searched", "dcm2niix")
    assert not (tmp_path / "out").exists()


def test_where_no_one_may_look_is_named_and_the_other_volumes_are_computed(tmp_path, tiny_bundle, monkeypatch):
    scan, closed = brain_file(tmp_path / "scan.nii", (5.0, 5.0, 5.0)), tmp_path / "closed"
    closed.mkdir()
    look, listing = Path.stat, Path.iterdir

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", lambda at, **more: refuse(at) if at.parent == closed else look(at, **more))
    monkeypatch.setattr(Path, "iterdir", lambda at: refuse(at) if at == closed else listing(at))
    result = infer(closed / "other.nii", scan, "-o", tmp_path / "out", "--model", tiny_bundle, "--no-png")
    assert result.exit_code == 1
    assert f"Error: {closed / 'other.nii'}: " in result.stderr
    assert "scan.nii: score" in result.stdout
    one_line(infer(closed, "-o", tmp_path / "none"), closed, "Permission denied", "check its permissions")
