"""Reading, computing and writing of a cohort overlap, in order and in bounded memory."""

import csv
import threading
import time
from itertools import pairwise

import pytest
from brains import brain_file

from ssn.core.bundle import load_bundle
from ssn.core.errors import OutputError
from ssn.runtime import cohort
from ssn.runtime.cohort import find_jobs, run_jobs
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.pipeline import write_outputs


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for index in range(4):
        brain_file(folder / f"s{index}.nii", zooms=(5.0, 5.0, 5.0), seed=index)
    return folder


def run(scans, out, bundle_folder, **callbacks):
    bundle = load_bundle(bundle_folder)
    with OnnxRuntimeBackend(bundle, threads=1) as backend:
        return run_jobs(
            find_jobs([scans]),
            out,
            bundle,
            backend,
            threshold=None,
            batch=24,
            picture=False,
            overwrite=False,
            **callbacks,
        )


def test_a_volume_computes_while_the_one_before_is_written(scans, tmp_path, tiny_bundle, monkeypatch):
    next_computes = threading.Event()
    waited = []

    def slow_disk(result, bundle, backend, folder, name, **options):
        if name == "s0":  # it returns only when the second volume is being computed: never, if nothing overlaps
            waited.append(next_computes.wait(timeout=20))
        return write_outputs(result, bundle, backend, folder, name, **options)

    def progress(share):
        if waited or started[-1] == "s1":
            next_computes.set()

    started = []
    monkeypatch.setattr(cohort, "write_outputs", slow_disk)
    outcomes = run(
        scans, tmp_path / "out", tiny_bundle, started=lambda job: started.append(job.name), progress=progress
    )
    assert waited == [True]
    assert [outcome.error for outcome in outcomes] == [None] * 4


def test_at_most_three_volumes_are_in_memory_and_outcomes_are_in_order(scans, tmp_path, tiny_bundle, monkeypatch):
    alive, most, lock = set(), [0], threading.Lock()
    read, write = cohort.read_volume, cohort.write_outputs

    def reading(path):
        with lock:
            alive.add(path.stem)
            most[0] = max(most[0], len(alive))
        return read(path)

    def writing(result, bundle, backend, folder, name, **options):
        record = write(result, bundle, backend, folder, name, **options)
        with lock:
            alive.discard(name)
        return record

    monkeypatch.setattr(cohort, "read_volume", reading)
    monkeypatch.setattr(cohort, "write_outputs", writing)
    finished = []
    outcomes = run(
        scans, tmp_path / "out", tiny_bundle, finished=lambda outcome, result: finished.append(outcome.job.name)
    )
    assert most[0] <= 3
    assert finished == [outcome.job.name for outcome in outcomes] == ["s0", "s1", "s2", "s3"]
    assert (tmp_path / "out" / "scores.csv").exists()


def test_seconds_in_the_table_are_from_one_result_to_the_next(scans, tmp_path, tiny_bundle):
    (scans / "s2.nii").write_bytes(b"no image")
    before = time.perf_counter()
    outcomes = run(scans, tmp_path / "out", tiny_bundle)
    whole = time.perf_counter() - before
    ends = [outcomes[0].ended - outcomes[0].seconds, *(outcome.ended for outcome in outcomes)]
    assert [outcome.seconds for outcome in outcomes] == [pytest.approx(b - a) for a, b in pairwise(ends)]
    assert ends == sorted(ends)
    with (tmp_path / "out" / "scores.csv").open() as table:
        listed = {row["file"]: float(row["seconds"]) for row in csv.DictReader(table)}
    assert sum(listed.values()) <= whole + 0.02, "stages that overlap are not counted twice"
    assert listed["s0.nii"] == round(outcomes[0].seconds, 2)


def test_a_volume_that_cannot_be_written_is_recorded_in_its_place(scans, tmp_path, tiny_bundle, monkeypatch):
    write = cohort.write_outputs

    def full_disk(result, bundle, backend, folder, name, **options):
        if name == "s1":
            raise OutputError("s1: cannot be written (no space left)")
        return write(result, bundle, backend, folder, name, **options)

    monkeypatch.setattr(cohort, "write_outputs", full_disk)
    (scans / "s2.nii").write_bytes(b"no image")
    outcomes = run(scans, tmp_path / "out", tiny_bundle)
    assert [bool(outcome.error) for outcome in outcomes] == [False, True, True, False]
    assert "no space left" in outcomes[1].error
    assert "s2.nii" in outcomes[2].error


def test_what_is_written_is_what_a_single_volume_gives(scans, tmp_path, tiny_bundle):
    run(scans, tmp_path / "all", tiny_bundle)
    bundle = load_bundle(tiny_bundle)
    with OnnxRuntimeBackend(bundle, threads=1) as backend:
        run_jobs(
            find_jobs([scans / "s2.nii"]), tmp_path / "one", bundle, backend,
            threshold=None, batch=24, picture=False, overwrite=False,
        )  # fmt: skip
    for suffix in ("_anomaly", "_mask"):
        one, other = ((tmp_path / folder / f"s2{suffix}.nii.gz").read_bytes() for folder in ("all", "one"))
        assert one == other
