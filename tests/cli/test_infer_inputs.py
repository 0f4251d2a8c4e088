"""Which volumes `ssn-infer` takes from its command line."""

from functools import partial

import pytest
from brains import brain_file
from commands import run

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
