"""Which backend computes on a CPU is measured once, remembered, and never in anybody's way."""

import json
import os
from dataclasses import replace
from itertools import chain, repeat

import pytest
from written_engines import machine

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, load_bundle
from ssn.runtime import cpu_choice
from ssn.runtime.choose import Request, open_backend
from ssn.runtime.cpu_choice import WORTH, Comparison, cache_path, choice_key, compare_on_cpu
from ssn.runtime.doctor import as_lines, diagnose

HERE = machine(None, openvino="2026.4.1")


@pytest.fixture
def measured(monkeypatch):
    """Number of threads of each measurement; what comes out is OpenVINO 1.5 times as fast."""
    calls = []

    def measure(bundle, threads):
        calls.append(threads)
        return 1.5

    monkeypatch.setattr(cpu_choice, "measure_speedup", measure)
    return calls


def test_the_second_call_remembers_what_the_first_one_measured(bundle, measured):
    first, second = (compare_on_cpu(bundle, HERE, None) for _ in range(2))
    assert measured == [None]
    assert first == second == Comparison(1.5)


def test_what_is_remembered_chooses_what_was_chosen_when_it_was_measured(bundle, monkeypatch):
    monkeypatch.setattr(cpu_choice, "measure_speedup", lambda *given: WORTH - 0.0004)
    first, second = (compare_on_cpu(bundle, HERE, None) for _ in range(2))
    assert first.chosen == second.chosen


def test_other_threads_versions_and_graphs_are_measured_anew(bundle, measured, tmp_path):
    compare_on_cpu(bundle, HERE, None)
    compare_on_cpu(bundle, HERE, 1)
    compare_on_cpu(bundle, machine(None, openvino="2027.0.0"), None)
    assert measured == [None, 1, None]
    assert len(json.loads(cache_path().read_text())) == 3
    for name in (ENCODER_FILE, FLOW_FILE):
        other = load_bundle(bundle.folder)
        other.manifest["files"][name]["sha256"] = "0" * 64
        assert choice_key(other, HERE, None) != choice_key(bundle, HERE, None)


def test_another_processor_and_another_onnxruntime_are_measured_anew(bundle, monkeypatch):
    known = choice_key(bundle, HERE, None)
    assert choice_key(bundle, replace(HERE, onnxruntime="1.99.0"), None) != known
    for name, value in (("cpu_name", "Zilog Z80"), ("cores", 77)):
        with monkeypatch.context() as patch:
            patch.setattr(cpu_choice, name, lambda value=value: value)
            assert choice_key(bundle, HERE, None) != known


@pytest.mark.parametrize("damage", ["{", "[1]", '{"a": "fast"}', "\x00\xff"])
def test_a_damaged_memory_is_measured_again_and_replaced(bundle, measured, damage):
    cache_path().parent.mkdir(parents=True)
    cache_path().write_bytes(damage.encode("latin-1"))
    assert compare_on_cpu(bundle, HERE, None) == Comparison(1.5)
    assert list(json.loads(cache_path().read_text()).values()) == [1.5]


@pytest.mark.parametrize("remembered", [0, -1, float("nan"), None, "1.5", True])
def test_a_number_that_cannot_be_is_not_believed(bundle, measured, remembered):
    cache_path().parent.mkdir(parents=True)
    cache_path().write_text(json.dumps({choice_key(bundle, HERE, None): remembered}))
    assert compare_on_cpu(bundle, HERE, None) == Comparison(1.5)
    assert measured == [None]


def test_a_cache_that_cannot_be_written_costs_only_the_memory(bundle, measured, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compare_on_cpu(bundle, HERE, None) == Comparison(1.5)
    if os.geteuid() != 0:  # whom no permission stops
        (tmp_path / "locked").mkdir(mode=0o500)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "locked"))
        assert compare_on_cpu(bundle, HERE, None) == Comparison(1.5)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/path")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_path() == tmp_path / ".cache" / "ssn" / "cpu-backend.json"

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", nowhere)  # a user of a container has none
    assert cache_path() is None
    assert compare_on_cpu(bundle, HERE, None) == Comparison(1.5)


def test_what_cannot_be_measured_is_no_crash_and_onnxruntime_computes(bundle, monkeypatch):
    def broken(bundle, threads):
        raise MemoryError

    monkeypatch.setattr(cpu_choice, "measure_speedup", broken)
    assert compare_on_cpu(bundle, HERE, 1) is None
    assert not cache_path().exists()
    choice = open_backend(bundle, Request(threads=1), HERE)
    with choice.backend:
        assert choice.label == "onnxruntime on cpu"


def test_openvino_computes_only_where_it_was_faster_by_more_than_its_start_costs(bundle, monkeypatch):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    for speedup, expected in ((1.3, "openvino"), (1.05, "onnxruntime"), (0.7, "onnxruntime")):
        monkeypatch.setattr("ssn.runtime.choose.compare_on_cpu", lambda *given, s=speedup: Comparison(s))
        choice = open_backend(bundle, Request(threads=1), HERE)
        with choice.backend:
            assert choice.label == f"{expected} on cpu"
        assert f"{speedup:.2f} times as fast as onnxruntime here, measured" in choice.measured


def test_what_was_asked_for_by_name_is_not_measured(bundle, measured):
    open_backend(bundle, Request(backend="onnxruntime", threads=1), HERE)
    assert open_backend(bundle, Request(threads=1), machine(None)).measured is None
    assert measured == []


def test_the_doctor_says_what_was_measured_and_what_would_run(bundle, measured):
    report = diagnose(bundle.folder, HERE)
    assert report["would_run"] == "openvino on cpu"
    assert any("1.50 times as fast" in said for _, said in as_lines(report))
    assert diagnose(bundle.folder, machine(None))["would_run"] == "onnxruntime on cpu"


def test_both_are_really_measured_and_the_answer_is_a_ratio(bundle):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    assert 0.02 < cpu_choice.measure_speedup(bundle, 1) < 50


@pytest.mark.parametrize("thick", [None, "slab"])
def test_the_best_times_of_a_batch_as_the_encoder_takes_it_are_compared(bundle, monkeypatch, thick):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    given = replace(bundle, spec=replace(bundle.spec, thick=thick))
    times = {"onnxruntime": chain([9, 6, 4], repeat(5)), "openvino": chain([9, 3, 2], repeat(7))}
    seen = []

    def seconds(backend, batch):
        seen.append((batch, backend.describe()["threads"]))
        return next(times[backend.name])

    monkeypatch.setattr(cpu_choice, "_seconds", seconds)
    assert cpu_choice.measure_speedup(given, 1) == 4 / 2
    assert {threads for _, threads in seen} == {1}
    windows = {int(place) // bundle.spec.cells**2 for batch, _ in seen for place in batch.places}
    assert {len(batch.slices) for batch, _ in seen} == {len(windows) * given.spec.slices_a_window}
