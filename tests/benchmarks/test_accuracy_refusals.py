"""What a comparison lacks is said before it computes anything; and where its mask begins."""

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import one_line, run
from trees import ixi

from ssn.benchmarks.accuracy import methods, suite
from ssn.benchmarks.accuracy.backbone import Backbone
from ssn.cli import bench
from ssn.core.errors import BackendError, DataError, OutputError
from ssn.train.evaluate import mask_threshold


def quiet(what, step, steps):
    pass


def test_the_json_has_a_name_of_its_own(tmp_path):
    with pytest.raises(OutputError, match=r"a\.md: is the name of the table; give the JSON's, .*a\.json"):
        suite.check_output(tmp_path / "a.md", overwrite=True)
    assert not list(tmp_path.iterdir())


def test_what_a_method_lacks_is_said_before_any_computing(monkeypatch):
    monkeypatch.setattr(methods, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"needs monai, which is not installed: pip install '\.\[bench\]'"):
        methods.choose_methods(["autoencoder 3d"])
    with pytest.raises(DataError, match="pca needs two healthy volumes"):
        methods.all_methods({}, ["z-score", "pca"], [Path("one.nii")], Backbone(), 4.0, quiet)
    one_line(run(bench.app, "methods", "--method", "autoencoder 3d"), "needs monai, which is not installed")
    assert run(bench.app, "methods").stdout.split() == ["z-score", "pca"]


def test_a_threshold_of_another_quantile_is_no_column_of_the_others(tiny_bundle, tiny_calibration, monkeypatch):
    assert methods.trained_models(tiny_bundle, ["again=" + str(tiny_bundle)])
    other = replace(tiny_calibration, threshold_rate=0.05)
    monkeypatch.setattr(methods, "calibration_of", lambda path: other)
    with pytest.raises(DataError, match=r"5\.00% of healthy brain above .*0\.50%; .*calibrate --rate 0\.005$"):
        methods.trained_models(tiny_bundle, [])


def test_without_a_peer_no_encoder_is_asked_for(tmp_path):
    assert methods.peers_backbone(tmp_path / "no model", "imagenet", ["z-score"]) is None


def test_of_a_control_with_several_contrasts_the_named_one_is_taken(tmp_path):
    several = ixi(tmp_path / "several", subjects=2, contrasts=("T1", "T2"))
    other = ixi(tmp_path / "other", subjects=2, contrasts=("T2",))
    with pytest.raises(DataError, match="choose one with --contrast"):
        suite.open_controls([several, other])
    found = suite.open_controls([several, other], "t1")
    assert {name: {case.contrast for case in cases} for name, cases in found.items()} == {
        "several": {"t1"},
        "other": {"t2"},
    }


def accuracy_suite(folder, train="exit 7", bench="exit 0", **settings):
    """Run the script with other commands: ones that end at once, if none is given."""
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    for name, does in (("ssn-train", train), ("ssn-bench", bench)):
        (commands / name).write_text(f"#!/bin/sh\n{does}\n")
        (commands / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}"} | settings
    script = Path(__file__).parents[2] / "scripts" / "accuracy_suite"
    return subprocess.run([script, folder / "work"], env=environment, capture_output=True, text=True, check=False)


def test_a_folder_of_the_suite_is_of_one_run_s_settings(tmp_path):
    assert accuracy_suite(tmp_path, WIDE="none").returncode == 7, "it has begun"
    assert accuracy_suite(tmp_path, WIDE="none", MODELS="mean seed-1", PROCESSES="1").returncode == 7
    for changed in ({"FULL": "1"}, {"WIDE": "imagenet"}, {"EPOCHS": "3"}, {"ITERATIONS": "9"}, {"SIZES": "--train 2"}):
        result = accuracy_suite(tmp_path, **{"WIDE": "none"} | changed)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"Error: {tmp_path / 'work'}: is of other settings, FULL=0 WIDE=none ")


def test_the_suite_refuses_a_model_that_it_does_not_know(tmp_path):
    result = accuracy_suite(tmp_path, MODELS="mean bogus")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: MODELS: bogus: no such model; there are: no-push-pull ")
    assert not (tmp_path / "work").exists()


def test_the_suite_makes_its_cohort_and_its_controls_on_all_cores(tmp_path):
    asked = tmp_path / "asked"
    train = f'[ "$1" = synth ] || exit 7\necho "$@" >>"{asked}"'
    assert accuracy_suite(tmp_path, train, WIDE="none", OMP_NUM_THREADS="77").returncode == 7
    cohorts = asked.read_text().splitlines()
    assert len(cohorts) == 3
    alone = {"PATH": os.environ["PATH"]}  # newer ones count a container's share of the cores, as Python does not
    cores = subprocess.run(["nproc"], env=alone, capture_output=True, text=True, check=True).stdout.strip()
    assert all(f"--workers {cores} " in f"{cohort} " for cohort in cohorts)


def test_the_suite_says_what_a_method_lacks_before_it_makes_anything(tmp_path):
    train, bench = f'touch "{tmp_path / "made"}"', '[ "$1 $2 $3" != "methods --method autoencoder 3d" ] || exit 9'
    assert accuracy_suite(tmp_path, train, bench, METHODS="autoencoder_3d").returncode == 9
    assert not (tmp_path / "made").exists()


def test_the_suite_runs_out_of_its_folder_where_no_command_is_installed(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$PYTHONPATH $*" >"{tmp_path / "given"}"\nexit 7\n')
    python.chmod(0o755)
    script = Path(__file__).parents[2] / "scripts" / "accuracy_suite"
    settings = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "SITE": "brought", "PYTHONPATH": "own"}
    result = subprocess.run([script, tmp_path / "work"], env=os.environ | settings, check=False)
    assert result.returncode == 7
    site, command = (tmp_path / "given").read_text().split(" -c ")
    assert site == f"{script.parents[1]}:brought:own"
    assert command == "from ssn.cli.bench import app; app() methods --method all\n"


def test_a_model_that_fails_ends_those_that_are_trained_beside_it(tmp_path):
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    train = (
        '[ "$1" = fit ] || exit 0\n'
        'case "$4" in */mean) ;; '  # the others fail when this one has begun
        f'*) for second in $(seq 300); do [ ! -e "{begun}" ] || break; sleep 0.1; done; exit 7;; esac\n'
        f'trap \'touch "{ended}"; exit\' TERM\ntouch "{begun}"\n'
        "for second in $(seq 300); do sleep 0.1; done"
    )
    assert accuracy_suite(tmp_path, train, WIDE="none", MODELS="mean", PROCESSES="2").returncode == 7
    for _ in range(100):
        if ended.exists():
            return
        time.sleep(0.1)
    raise AssertionError("it is trained on")


def test_the_mask_of_the_validation_threshold_holds_the_voxel_that_gave_it():
    scores, lesion = np.array([0, 0, 1, 1], np.float32), np.array([False, False, True, True])
    assert ((scores > mask_threshold([scores], [lesion])) == lesion).all()


def test_a_method_of_an_unknown_name_is_refused_with_the_names():
    with pytest.raises(DataError, match=r"magic: no such method; there are: z-score, .*fastflow, all") as error:
        methods.choose_methods(["pca", "magic"])
    assert all(name in str(error.value) for name in methods.NAMES)
