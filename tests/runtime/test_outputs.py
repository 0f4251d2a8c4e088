"""A volume's outputs: all of one run, or none, whoever else writes and whenever it ends."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from brains import brain_file

from ssn.core import atomic
from ssn.core.atomic import atomic_path
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
    assert finished_record(tmp_path / "scan.nii", found[1], out, "scan", threshold=None, picture=True) == others[0]


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
    made = outputs.as_record

    def look(*arguments):  # as if the process ended here: the mask is replaced, the record not yet
        mask = np.asarray(nib.load(out / "scan_mask.nii.gz").dataobj)
        record = finished_record(tmp_path / "scan.nii", bundle, out, "scan", threshold=None, picture=False)
        finished.append((int(mask.sum()), record))
        return made(*arguments)

    write_outputs(*found, out, "scan", picture=False)
    level = float(np.median(result.score_map[result.brain]))
    other = replace(result, threshold=level, mask=(result.score_map > level).astype(np.uint8))
    monkeypatch.setattr(outputs, "as_record", look)
    write_outputs(other, bundle, backend, out, "scan", picture=False, overwrite=True)
    assert finished == [(int(other.mask.sum()), None)]
    assert other.mask.sum() != result.mask.sum()
