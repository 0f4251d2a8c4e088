"""A volume's outputs: all of one run, or none, whoever else writes and whenever it ends."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from brains import brain_file

from ssn.core import atomic
from ssn.core.atomic import atomic_path, atomic_together
from ssn.core.bundle import load_bundle
from ssn.core.errors import OutputError
from ssn.runtime import montage, outputs
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.outputs import finished_record, output_paths, write_outputs
from ssn.runtime.pipeline import infer_volume


@pytest.fixture
def found(tmp_path, tiny_bundle):
    """A volume's result, the bundle and a backend."""
    bundle = load_bundle(tiny_bundle)
    scan = brain_file(tmp_path / "scan.nii", zooms=(5.0, 5.0, 5.0))
    with OnnxRuntimeBackend(bundle, threads=1) as backend:
        yield infer_volume(scan, bundle, backend), bundle, backend


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_process_that_was_faster_keeps_its_file(tmp_path):
    with pytest.raises(OutputError, match="exists already"), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("mine")
        (tmp_path / "a.txt").write_text("the other's")
    assert contents(tmp_path) == {"a.txt": b"the other's"}


def test_a_file_system_without_hard_links_takes_files_too(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(atomic.os, "link", refuse)
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("mine")
    with pytest.raises(OutputError, match="exists already"), atomic_path(tmp_path / "b.txt") as temporary:
        temporary.write_text("mine")
        (tmp_path / "b.txt").write_text("the other's")
    assert contents(tmp_path) == {"a.txt": b"mine", "b.txt": b"the other's"}


def test_of_two_that_write_the_same_volume_one_has_all_and_the_other_leaves_nothing(found, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write, others = outputs.write_map, []

    def slow(path, *arguments, **options):
        if not others:  # the other one begins and ends while this one has written nothing yet
            others.append(None)
            others[0] = write_outputs(*found, out, "scan")
        write(path, *arguments, **options)

    monkeypatch.setattr(outputs, "write_map", slow)
    with pytest.raises(OutputError, match="exists already"):
        write_outputs(*found, out, "scan")
    assert {path.name for path in out.iterdir()} == {path.name for path in output_paths(out, "scan")}
    assert finished_record(tmp_path / "scan.nii", *found[1:], out, "scan", threshold=None, picture=True) == others[0]


def test_outputs_of_another_process_are_not_removed_with_ours(found, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def meanwhile(path, *arguments, **options):
        path.write_bytes(b"another's picture")
        raise OutputError("exists already")

    monkeypatch.setattr(montage, "write_montage", meanwhile)
    with pytest.raises(OutputError):
        write_outputs(*found, out, "scan")
    assert contents(out) == {"scan.png": b"another's picture"}


def test_what_is_cut_off_while_it_replaces_is_not_taken_for_finished(found, tmp_path, monkeypatch):
    result, bundle, backend = found
    out, finished = tmp_path / "out", []
    take = atomic._take_name

    def look(temporary, path, **options):  # as if the process ended here: the mask is replaced, the record not yet
        take(temporary, path, **options)
        if path.name == "scan_mask.nii.gz":
            mask = np.asarray(nib.load(path).dataobj)
            record = finished_record(tmp_path / "scan.nii", bundle, backend, out, "scan", threshold=None, picture=False)
            finished.append((int(mask.sum()), record))

    write_outputs(*found, out, "scan", picture=False)
    level = float(np.median(result.score_map[result.brain]))
    other = replace(result, threshold=level, mask=(result.score_map > level).astype(np.uint8))
    monkeypatch.setattr(atomic, "_take_name", look)
    write_outputs(other, bundle, backend, out, "scan", picture=False, overwrite=True)
    assert finished == [(int(other.mask.sum()), None)]
    assert other.mask.sum() != result.mask.sum()


def test_only_outputs_of_this_very_volume_bundle_threshold_and_version_are_finished(found, tmp_path, monkeypatch):
    _, bundle, backend = found
    out, scan = tmp_path / "out", tmp_path / "scan.nii"
    record = write_outputs(*found, out, "scan", picture=False)

    def finished(bundle=bundle, threshold=None, picture=False):
        return finished_record(scan, bundle, backend, out, "scan", threshold=threshold, picture=picture)

    assert finished() == finished(threshold=bundle.calibration.threshold) == record
    assert finished(threshold=bundle.calibration.threshold + 0.1) is None
    assert finished(replace(bundle, digest="0" * 64)) is None
    assert finished(picture=True) is None
    with monkeypatch.context() as patched:
        patched.setattr(outputs, "__version__", "0.0")
        assert finished() is None
    scan.write_bytes(scan.read_bytes()[:-1] + b"\1")
    assert finished() is None


def test_what_cannot_be_replaced_whole_stays_as_it_was(found, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_outputs(*found, out, "scan")
    before = contents(out)

    def full(*arguments, **options):
        raise OutputError("No space left on device")

    for name in ("ssn.runtime.montage.write_montage", "ssn.runtime.outputs.write_map"):
        with monkeypatch.context() as patched, pytest.raises(OutputError, match="No space"):
            patched.setattr(name, full)
            write_outputs(*found, out, "scan", overwrite=True)
        assert contents(out) == before


def test_of_several_files_none_is_left_where_one_cannot_take_its_name(tmp_path):
    with pytest.raises(OutputError, match=r"b\.txt: exists already"), atomic_together() as held:
        for name in ("a.txt", "b.txt", "c.txt"):
            with atomic_path(tmp_path / name, held=held) as temporary:
                temporary.write_text("mine")
        (tmp_path / "b.txt").write_text("the other's")
    assert contents(tmp_path) == {"b.txt": b"the other's"}


def test_of_several_files_none_is_left_half_written(tmp_path):
    with pytest.raises(OutputError, match="No space left"), atomic_together() as held:
        for name in ("a.txt", "b.txt"):
            with atomic_path(tmp_path / name, held=held) as temporary:
                temporary.write_text("mine")
                if name == "b.txt":
                    raise OSError(28, "No space left on device")
    assert contents(tmp_path) == {}


def test_what_has_replaced_a_file_stays_where_another_cannot_take_its_name(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(OutputError, match=r"b\.txt"), atomic_together(overwrite=True) as held:
        for name in ("a.txt", "b.txt"):
            with atomic_path(tmp_path / name, overwrite=True, held=held) as temporary:
                temporary.write_text("after")
        (tmp_path / "b.txt").mkdir()
    (tmp_path / "b.txt").rmdir()
    assert contents(tmp_path) == {"a.txt": b"after"}


def test_a_file_of_somebody_else_is_not_replaced_though_ours_would_be(found, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "scan.json").write_text('{"mine": 1}')
    with pytest.raises(OutputError, match=r"scan\.json: .*not written by ssn"):
        write_outputs(*found, out, "scan", picture=False, overwrite=True)
    assert contents(out) == {"scan.json": b'{"mine": 1}'}


def test_a_picture_of_another_run_does_not_stay_beside_new_outputs(found, tmp_path):
    out = tmp_path / "out"
    write_outputs(*found, out, "scan")
    write_outputs(*found, out, "scan", picture=False, overwrite=True)
    assert not (out / "scan.png").exists()
    (out / "scan.png").write_bytes(b"somebody's")
    write_outputs(*found, out, "scan", picture=False, overwrite=True)
    assert (out / "scan.png").read_bytes() == b"somebody's"
