"""Volumes of a cohort overlap, in order and in bounded memory."""

import csv
import threading
import time
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from brains import brain_file

from ssn.core.bundle import load_bundle
from ssn.core.errors import OutputError
from ssn.runtime import cohort
from ssn.runtime.cohort import run_jobs, volumes_at_once
from ssn.runtime.jobs import find_jobs
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.outputs import write_outputs


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for index in range(4):
        brain_file(folder / f"s{index}.nii", zooms=(5.0, 5.0, 5.0), seed=index)
    return folder


def run(scans, out, bundle_folder, at_once=1, overwrite=False, threshold=None, picture=False, **options):
    bundle = load_bundle(bundle_folder)
    with OnnxRuntimeBackend(bundle, threads=at_once, at_once=at_once) as backend:
        return run_jobs(
            find_jobs([scans]),
            out,
            bundle,
            backend,
            threshold=threshold,
            batch=24,
            picture=picture,
            overwrite=overwrite,
            overview=True,
            **options,
        )


def test_a_volume_computes_while_another_is_written(scans, tmp_path, tiny_bundle, monkeypatch):
    other_computes = threading.Event()
    waited = []

    def slow_disk(result, bundle, backend, folder, name, **options):
        if name == "s0":  # it returns only when another volume is being computed: never, if nothing overlaps
            other_computes.clear()
            waited.append(other_computes.wait(timeout=20))
        return write_outputs(result, bundle, backend, folder, name, **options)

    monkeypatch.setattr(cohort, "write_outputs", slow_disk)
    outcomes = run(scans, tmp_path / "out", tiny_bundle, progress=lambda share: other_computes.set())
    assert waited == [True]
    assert [outcome.error for outcome in outcomes] == [None] * 4


@pytest.mark.parametrize("at_once", [1, 2])
def test_memory_is_bounded_by_volumes_at_once_and_outcomes_are_in_order(
    scans, tmp_path, tiny_bundle, monkeypatch, at_once
):
    for index in range(4, 8):
        brain_file(scans / f"s{index}.nii", zooms=(5.0, 5.0, 5.0), seed=index)
    alive, most, lock = set(), [0], threading.Lock()
    infer, write = cohort.infer_volume, cohort.write_outputs

    def inferring(path, *arguments, **options):
        with lock:
            alive.add(path.stem)
            most[0] = max(most[0], len(alive))
        return infer(path, *arguments, **options)

    def writing(result, bundle, backend, folder, name, **options):
        record = write(result, bundle, backend, folder, name, **options)
        with lock:
            alive.discard(name)
        return record

    monkeypatch.setattr(cohort, "infer_volume", inferring)
    monkeypatch.setattr(cohort, "write_outputs", writing)
    finished = []
    outcomes = run(
        scans, tmp_path / "out", tiny_bundle, at_once, finished=lambda outcome: finished.append(outcome.job.name)
    )
    assert 2 <= most[0] <= at_once + 2
    assert finished == [outcome.job.name for outcome in outcomes] == [f"s{index}" for index in range(8)]
    assert (tmp_path / "out" / "scores.csv").exists()


def test_no_more_volumes_than_the_backend_allows_are_in_it(scans, tmp_path, tiny_bundle, monkeypatch):
    inside, most, lock = [0], [0], threading.Lock()
    compute = OnnxRuntimeBackend.run

    def counted(self, batches, times):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        yield from compute(self, batches, times)
        with lock:
            inside[0] -= 1

    monkeypatch.setattr(OnnxRuntimeBackend, "run", counted)
    run(scans, tmp_path / "one", tiny_bundle, at_once=1)
    assert most[0] == 1
    run(scans, tmp_path / "two", tiny_bundle, at_once=2)
    assert most[0] == 2


def test_what_has_not_begun_does_not_begin_after_an_interruption(scans, tmp_path, tiny_bundle):
    for index in range(4, 12):
        brain_file(scans / f"s{index:02}.nii", zooms=(5.0, 5.0, 5.0), seed=index)
    begun = []

    def interrupt(outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(scans, tmp_path / "out", tiny_bundle, started=lambda job: begun.append(job.name), finished=interrupt)
    assert len(begun) < 12
    assert not (tmp_path / "out" / "scores.csv").exists()


@pytest.mark.parametrize(("jobs", "threads", "expected"), [(1, 16, 1), (10, 2, 2), (3, 16, 3), (1000, 64, 8)])
def test_volumes_at_once(jobs, threads, expected):
    assert volumes_at_once(jobs, threads) == expected


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
            threshold=None, batch=24, picture=False, overwrite=False, overview=False,
        )  # fmt: skip
    for suffix in ("_anomaly", "_mask"):
        one, other = ((tmp_path / folder / f"s2{suffix}.nii.gz").read_bytes() for folder in ("all", "one"))
        assert one == other


@pytest.mark.parametrize("backend_class", ["onnxruntime", "openvino"])
def test_volumes_at_once_do_not_change_what_is_written(scans, tmp_path, tiny_bundle, backend_class):
    pytest.importorskip(backend_class, reason=f"{backend_class} is not installed")
    from ssn.runtime.openvino import OpenVinoBackend

    make = OnnxRuntimeBackend if backend_class == "onnxruntime" else OpenVinoBackend
    bundle = load_bundle(tiny_bundle)
    maps = {}
    for at_once in (1, 3):
        folder = tmp_path / f"{at_once}"
        with make(bundle, threads=at_once, at_once=at_once) as backend:
            run_jobs(
                find_jobs([scans]),
                folder,
                bundle,
                backend,
                threshold=None,
                batch=24,
                picture=False,
                overwrite=False,
                overview=True,
            )
        maps[at_once] = [
            np.asarray(nib.load(path).dataobj, np.float32) for path in sorted(folder.glob("*_anomaly.nii.gz"))
        ]
    assert len(maps[1]) == len(maps[3]) == 4
    for one, several in zip(maps[1], maps[3], strict=True):
        np.testing.assert_allclose(several, one, atol=1e-3)
    assert np.abs(maps[1][0] - maps[1][1]).max() > 0.1, "volumes differ, so a mix-up would be seen"


def test_a_fault_of_ours_in_one_volume_leaves_the_others_their_turn(scans, tmp_path, tiny_bundle, monkeypatch):
    infer = cohort.infer_volume

    def faulty(path, *arguments, **options):
        if path.name == "s1.nii":
            raise RuntimeError("two\nlines")
        if path.name == "s2.nii":
            raise MemoryError
        return infer(path, *arguments, **options)

    monkeypatch.setattr(cohort, "infer_volume", faulty)
    outcomes = run(scans, tmp_path / "out", tiny_bundle)
    assert [outcome.error is None for outcome in outcomes] == [True, False, False, True]
    assert outcomes[1].error == f"{scans / 's1.nii'}: RuntimeError: two lines; please report this"
    assert "memory" in outcomes[2].error
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 5


def test_an_interrupted_cohort_goes_on_where_it_stopped(scans, tmp_path, tiny_bundle, monkeypatch):
    out, computed = tmp_path / "out", []
    infer = cohort.infer_volume

    def counted(path, *arguments, **options):
        computed.append(path.name)
        return infer(path, *arguments, **options)

    def interrupt(outcome):
        if outcome.job.name == "s1":
            raise KeyboardInterrupt

    monkeypatch.setattr(cohort, "infer_volume", counted)
    with pytest.raises(KeyboardInterrupt):
        run(scans, out, tiny_bundle, finished=interrupt)
    done = {path.stem for path in out.glob("*.json")}
    assert {"s0", "s1"} <= done
    (out / "s1_mask.nii.gz").unlink()  # as if it had ended between two files
    brain_file(scans / "s0.nii", zooms=(5.0, 5.0, 5.0), seed=9)  # another brain than the one that was finished
    computed.clear()
    outcomes = run(scans, out, tiny_bundle, resume=True)
    assert sorted(computed) == sorted(f"{name}.nii" for name in ({"s0", "s1", "s2", "s3"} - done) | {"s0", "s1"})
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert len((out / "scores.csv").read_text().splitlines()) == 5


def test_what_another_threshold_gave_is_not_what_is_resumed(scans, tmp_path, tiny_bundle, monkeypatch):
    for name in ("s1", "s2", "s3"):
        (scans / f"{name}.nii").unlink()
    out, computed, infer = tmp_path / "out", [], cohort.infer_volume

    def counted(path, *arguments, **options):
        computed.append(options["threshold"])
        return infer(path, *arguments, **options)

    monkeypatch.setattr(cohort, "infer_volume", counted)
    for threshold in (0.5, 1.5, 1.5):
        (outcome,) = run(scans, out, tiny_bundle, resume=True, threshold=threshold)
        assert outcome.record["map"]["threshold_z"] == threshold
    assert computed == [0.5, 1.5]
    run(scans, out, tiny_bundle, resume=True, threshold=1.5, picture=True)
    assert (out / "s0.png").exists(), "asked for now, and not when the rest was computed"


def test_a_cohort_of_which_nothing_was_computed_has_no_table(scans, tmp_path, tiny_bundle):
    for scan in scans.iterdir():
        scan.write_bytes(b"no image")
    outcomes = run(scans, tmp_path / "out", tiny_bundle)
    assert all(outcome.error for outcome in outcomes)
    assert list((tmp_path / "out").iterdir()) == []


def test_one_output_that_exists_stops_all_before_any_computing(scans, tmp_path, tiny_bundle):
    out = tmp_path / "out"
    out.mkdir()
    (out / "s2_mask.nii.gz").write_bytes(b"mine")
    begun = []
    for overwrite, said in ((False, "exists already"), (True, "not written by ssn")):
        with pytest.raises(OutputError, match=rf"s2_mask\.nii\.gz: .*{said}"):
            run(scans, out, tiny_bundle, overwrite=overwrite, started=begun.append)
    assert begun == []
    assert [path.name for path in out.iterdir()] == ["s2_mask.nii.gz"]
