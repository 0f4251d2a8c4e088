"""What every command shares: whatever a user can cause is one line, and an end from outside is a clean one."""

import io
import os
import signal
import subprocess
import sys
import threading

import pytest
import typer
from brains import brain_file
from typer.testing import CliRunner

from ssn.cli import options
from ssn.cli.console import measuring, progress_bar, user_errors


def ended(capsys, error):
    with pytest.raises(typer.Exit) as end, user_errors():
        raise error
    return end.value.exit_code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("package", ["torch", "sklearn.metrics"])
def test_a_package_that_a_lean_install_lacks_is_named_with_its_extra(capsys, package):
    code, (line,) = ended(capsys, ModuleNotFoundError("no", name=package))
    assert code == 1
    name = package.split(".")[0]
    assert line == f"Error: this needs {name}, which is not installed: pip install '.[train]' in ssn's folder"


def test_a_module_that_no_extra_brings_is_a_fault_of_ours():
    with pytest.raises(ModuleNotFoundError), user_errors():
        raise ModuleNotFoundError("no", name="ssn.nowhere")


def test_training_without_torch_is_one_line(monkeypatch, tmp_path):
    from ssn.cli.train import app

    monkeypatch.setitem(sys.modules, "torch", None)
    for module in [name for name in sys.modules if name.startswith("ssn.train")]:
        monkeypatch.delitem(sys.modules, module)
    result = CliRunner().invoke(app, ["fit", str(tmp_path), "-o", str(tmp_path / "model")])
    assert result.exit_code == 1
    assert result.stderr.strip().splitlines() == [
        "Error: this needs torch, which is not installed: pip install '.[train]' in ssn's folder"
    ]


def test_an_error_of_the_operating_system_names_the_file(capsys):
    code, (line,) = ended(capsys, PermissionError(13, "Permission denied", "/closed/scan.nii"))
    assert (code, line) == (1, "Error: /closed/scan.nii: Permission denied")


def test_a_reader_that_went_away_is_left_to_the_command_line():
    with pytest.raises(BrokenPipeError), user_errors():
        raise BrokenPipeError


def test_an_end_from_outside_is_clean_as_ctrl_c_is(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as end, user_errors():
        os.kill(os.getpid(), signal.SIGTERM)
    assert end.value.exit_code == 130
    assert capsys.readouterr().err == "Interrupted.\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def heard():
    """Both signals as a terminal's process has them; a shell starts its background jobs without SIGINT."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_cut_short_what_the_first_one_cleans_up(capsys, heard, number):
    cleaned = []
    with pytest.raises(typer.Exit), user_errors():
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)
    assert cleaned
    assert capsys.readouterr().err == "Interrupted.\n"


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with user_errors():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_a_standard_error_a_volume_is_computed_all_the_same(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert progress_bar().disable


def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path, tiny_bundle):
    scan = brain_file(tmp_path / "脳.nii.gz")
    script = "from ssn.cli.infer import app; app()"
    found = subprocess.run(
        [sys.executable, "-c", script, scan, "-o", tmp_path / "out", "--model", tiny_bundle, "--no-png"],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert b"\\u8133.nii.gz: score" in found.stdout


def test_more_threads_than_cores_are_not_taken(monkeypatch):
    monkeypatch.setattr("ssn.runtime.machine.cores", lambda: 4)
    assert [options._at_most_cores(threads) for threads in (None, 2, 1000)] == [None, 2, 4]


def test_where_there_is_no_terminal_a_measurement_prints_what_begins(capsys):
    with measuring() as tell:
        for what, step in (("one network", 0), ("one network", 1), ("another", 0)):
            tell(what, step, 2)
    assert capsys.readouterr().err.splitlines() == ["one network", "another"]


def test_on_a_terminal_a_measurement_is_drawn_when_it_is_told_and_by_no_thread(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    threads = threading.active_count()
    with measuring() as tell:
        assert threading.active_count() == threads
        drawn = len(screen.getvalue())
        tell("one network", 1, 2)
        assert "one network" in screen.getvalue()[drawn:]
