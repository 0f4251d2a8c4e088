import gzip
import json
import re
import shutil
import sys
import tomllib
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from brains import brain_array, brain_file, save
from commands import run
from PIL import Image

from ssn.cli.infer import app
from ssn.runtime.packaged import DEFAULT_BUNDLE, DEMO_HEALTHY_VOLUME, DEMO_VOLUME

infer = partial(run, app)
SUFFIXES = ("_anomaly.nii.gz", "_mask.nii.gz", ".json", ".png")


def outputs(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_a_volume_gives_map_mask_record_and_picture(tmp_path, tiny_bundle):
    scan = brain_file(tmp_path / "scan.nii.gz")
    result = infer(scan, "-o", tmp_path / "out", "--model", tiny_bundle, "--backend", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert outputs(tmp_path / "out") == {f"scan{suffix}" for suffix in SUFFIXES}
    original, score, mask = (nib.load(p) for p in (scan, *(tmp_path / "out" / f"scan{s}" for s in SUFFIXES[:2])))
    for written in (score, mask):
        assert written.shape == original.shape
        np.testing.assert_allclose(written.affine, original.affine)
    assert set(np.unique(np.asanyarray(mask.dataobj))) <= {0, 1}
    record = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert record["backend"]["backend"] == "onnxruntime"
    assert set(record["times_ms"]) >= {"read", "prepare", "encoder", "flow", "map", "write"}
    assert all(milliseconds > 0 for milliseconds in record["times_ms"].values())
    assert len(record["slices"]) == original.shape[2]
    assert str(tmp_path) not in json.dumps(record), "folders can name patients"
    assert "Research use only" in record["intended_use"]


def test_the_batch_size_does_not_change_the_map(tmp_path, tiny_bundle):
    scan = brain_file(tmp_path / "scan.nii")
    maps = []
    for batch in (3, 10, 300):
        out = tmp_path / f"out{batch}"
        assert infer(scan, "-o", out, "--model", tiny_bundle, "--batch", batch, "--no-png").exit_code == 0
        maps.append(nib.load(out / "scan_anomaly.nii.gz").get_fdata())
    for other in maps[1:]:
        np.testing.assert_allclose(other, maps[0], atol=1e-3)


def test_nothing_is_overwritten_without_force(tmp_path, tiny_bundle):
    scan, out = brain_file(tmp_path / "scan.nii"), tmp_path / "out"
    assert infer(scan, "-o", out, "--model", tiny_bundle).exit_code == 0
    before = (out / "scan.json").read_text()
    result = infer(scan, "-o", out, "--model", tiny_bundle)
    assert result.exit_code == 1
    assert "--force" in result.output
    assert (out / "scan.json").read_text() == before
    assert infer(scan, "-o", out, "--model", tiny_bundle, "--force").exit_code == 0
    assert (out / "scan.json").read_text() != before, "the times differ"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_ssn_did_not_write_is_not_replaced_even_with_force(tmp_path, tiny_bundle, suffix):
    scan = brain_file(tmp_path / "scan.nii.gz")  # in the folder that it lies in, as BIDS has records and masks
    foreign = tmp_path / f"scan{suffix}"
    match suffix:
        case ".json":
            foreign.write_text('{"RepetitionTime": 2.3}')
        case ".png":
            Image.new("L", (8, 8)).save(foreign)
        case _:
            brain_file(foreign)
    before = foreign.read_bytes()
    result = infer(scan, "-o", tmp_path, "--model", tiny_bundle, "--force")
    assert result.exit_code == 1
    assert f"{foreign}: was not written by ssn" in result.stderr
    assert foreign.read_bytes() == before
    assert outputs(tmp_path) == {scan.name, foreign.name}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("scan_mask.nii.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\0garbage"),
        ("scan.json", b"[" * 100_000),
        ("scan.png", b"\x89PNG\r\n\x1a\n" + bytes(40)),
    ],
)
def test_what_cannot_be_read_is_nobodys_to_replace(tmp_path, tiny_bundle, name, content):
    scan, out = brain_file(tmp_path / "scan.nii"), tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(content)
    result = infer(scan, "-o", out, "--model", tiny_bundle, "--force")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert f"{out / name}: was not written by ssn" in result.stderr
    assert (out / name).read_bytes() == content


def test_a_link_to_nothing_is_no_place_to_write_to(tmp_path, tiny_bundle):
    scan, out = brain_file(tmp_path / "scan.nii"), tmp_path / "out"
    out.symlink_to(tmp_path / "gone")
    assert f"{out} is a link to nothing" in infer(scan, "-o", out, "--model", tiny_bundle).stderr
    out.unlink(), out.mkdir()
    (out / "scan.json").symlink_to(tmp_path / "gone")
    assert f"{out / 'scan.json'}: exists already" in infer(scan, "-o", out, "--model", tiny_bundle).stderr


def test_an_output_that_cannot_be_replaced_leaves_the_others_as_they_were(tmp_path, tiny_bundle):
    scan, out = brain_file(tmp_path / "scan.nii"), tmp_path / "out"
    assert infer(scan, "-o", out, "--model", tiny_bundle, "--no-png").exit_code == 0
    (out / "scan.png").mkdir()
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    result = infer(scan, "-o", out, "--model", tiny_bundle, "--force", "--threshold", "1")
    assert result.exit_code == 1
    assert "scan.png: was not written by ssn" in result.stderr
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_doubts_about_a_volume_are_said_and_on_record(tmp_path, tiny_bundle):
    scan = brain_file(tmp_path / "sub-01_T2w.nii.gz")
    _with_header(scan, sform_code=((), 0), qform_code=((), 0))
    result = infer(scan, "-o", tmp_path / "out", "--model", tiny_bundle, "--no-png")
    assert result.exit_code == 0
    header, contrast, extent = result.stderr.strip().splitlines()
    assert header.startswith(f"Warning: {scan}: its header does not say how it lies")
    assert contrast == f"Warning: {scan}: its name says t2, and the model knows t1 only; give it t1 volumes"
    record = json.loads((tmp_path / "out" / "sub-01_T2w.json").read_text())
    assert "of its brain is above the threshold" in extent
    assert len(record["input"]["doubts"]) == 3
    assert record["bundle"]["modality"] == "t1"


def test_the_highest_place_is_in_millimetres_whatever_the_header_counts_in(tmp_path, tiny_bundle):
    places = []
    for name, unit, size in (("mm", "mm", 1.0), ("m", "meter", 0.001)):
        data, affine = brain_array()
        image = nib.Nifti1Image(data.astype(np.float32), np.diag([size, size, size, 1]) @ affine)
        image.header.set_xyzt_units(unit)
        nib.save(image, tmp_path / f"{name}.nii")
        result = infer(tmp_path / f"{name}.nii", "-o", tmp_path / name, "--model", tiny_bundle, "--json", "--no-png")
        places.append(json.loads(result.stdout)["map"]["highest_at_mm"])
    assert places[0] == pytest.approx(places[1], abs=0.2)
    assert max(abs(v) for v in places[0]) > 1


@pytest.mark.parametrize("threshold", ["nan", "inf", "1e39", "-1e300"])
def test_a_threshold_that_is_no_number_is_a_usage_error(tmp_path, threshold):
    result = infer(tmp_path / "scan.nii", "-o", tmp_path / "out", "--threshold", threshold)
    assert result.exit_code == 2
    assert "standard deviations" in result.stderr


def test_a_folder_gives_a_table_and_a_bad_volume_does_not_stop_it(tmp_path, tiny_bundle):
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    brain_file(cohort / "a.nii.gz")
    brain_file(cohort / "b.nii.gz", lesion=False, seed=1)
    (cohort / "c.nii.gz").write_bytes((cohort / "a.nii.gz").read_bytes()[:5000])
    (cohort / "notes.txt").write_text("not a volume")
    brain_file(cohort / "a_mask.nii.gz")
    result = infer(cohort, "-o", tmp_path / "out", "--model", tiny_bundle, "--no-png", "--json")
    assert result.exit_code == 1, "one volume is bad"
    assert outputs(tmp_path / "out") == {f"{n}{s}" for n in "ab" for s in SUFFIXES[:3]} | {"scores.csv"}
    table = (tmp_path / "out" / "scores.csv").read_text().splitlines()
    assert table[0].startswith("file,score,p_value")
    assert len(table) == 4
    assert table[3].startswith("c.nii.gz,")
    last = result.stderr.splitlines()[-1]
    assert re.fullmatch(r"3 volumes in \d+\.\d s, 1 of them with an error: .*scores\.csv", last)
    assert [json.loads(line)["input"]["name"] for line in result.stdout.splitlines()] == ["a.nii.gz", "b.nii.gz"]


def test_two_inputs_whose_outputs_would_collide_are_refused(tmp_path, tiny_bundle):
    (tmp_path / "x").mkdir()
    scans = brain_file(tmp_path / "scan.nii"), brain_file(tmp_path / "x" / "scan.nii.gz")
    result = infer(*scans, "-o", tmp_path / "out", "--model", tiny_bundle)
    assert result.exit_code == 1
    assert "same names" in result.output


def _flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def _with_header(path, **fields):
    image = nib.load(path)
    data, affine = np.asanyarray(image.dataobj), image.affine
    raw = bytearray(save(path.with_name("plain.nii"), data, affine).read_bytes())
    header = np.ndarray((), nib.Nifti1Header().structarr.dtype, buffer=raw)
    for name, (index, value) in fields.items():
        header[name][index] = value
    path.with_name("plain.nii").unlink()
    path.write_bytes(gzip.compress(bytes(raw)))


def _replace(path, make):
    data, affine = brain_array()
    save(path, *make(data, affine), dtype=np.float32)


def _scatter(path):
    """A quarter of the brain's voxels, evenly: enough ml for a brain, and no map cell is mostly brain."""
    data, affine = brain_array((2.0, 2.0, 2.0))
    save(path, data * (np.indices(data.shape).sum(0) % 4 == 0), affine)


BAD = {
    "a truncated gzip": lambda p: p.write_bytes(p.read_bytes()[:-2000]),
    "a flipped byte inside the gzip": _flipped,
    "no NIfTI at all": lambda p: p.write_bytes(b"hello, this is not an image" * 100),
    "an empty file": lambda p: p.write_bytes(b""),
    "several frames": lambda p: _replace(p, lambda d, a: (np.stack([d, d], -1), a)),
    "all zeros": lambda p: _replace(p, lambda d, a: (d * 0, a)),
    "mostly NaN": lambda p: _replace(p, lambda d, a: (np.where(d > 0, np.nan, d), a)),
    "a zero voxel size": lambda p: _with_header(p, pixdim=(2, 0.0), sform_code=((), 0), qform_code=((), 0)),
    "a negative voxel size": lambda p: _with_header(p, pixdim=(1, -3.0), sform_code=((), 0), qform_code=((), 0)),
    "a singular affine": lambda p: _with_header(p, srow_x=(slice(None), 0.0)),
    "a NaN affine": lambda p: _with_header(p, srow_y=(1, np.nan)),
    "an axis of one voxel": lambda p: _replace(p, lambda d, a: (d[:, :, 20:21], a)),
    "an enormous declared shape": lambda p: _with_header(p, dim=(slice(1, 4), 2000)),
    "no skull stripping": lambda p: _replace(p, lambda d, a: (d + np.random.default_rng(0).uniform(1, 50, d.shape), a)),
    "a mask in place of the image": lambda p: _replace(p, lambda d, a: ((d > 0).astype(np.float32), a)),
    "scattered voxels": _scatter,
    "hardly any brain": lambda p: _replace(p, lambda d, a: (d * (np.indices(d.shape)[2] < 8), a)),
    "a wrong orientation": lambda p: _replace(p, lambda d, a: (d, a[[1, 0, 2, 3]] @ np.diag([1, 1, 1, 1]))),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_line_and_leaves_nothing(tmp_path, tiny_bundle, what):
    scan = brain_file(tmp_path / "scan.nii.gz")
    BAD[what](scan)
    result = infer(scan, "-o", tmp_path / "out", "--model", tiny_bundle)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.output
    assert lines[0].startswith("Error:")
    assert "scan.nii.gz" in lines[0]
    assert outputs(tmp_path / "out") == set()


def test_a_missing_file_and_an_unwritable_output_are_one_clear_line(tmp_path, tiny_bundle):
    scan = brain_file(tmp_path / "scan.nii")
    missing = infer(tmp_path / "nowhere.nii.gz", "-o", tmp_path / "out", "--model", tiny_bundle)
    (tmp_path / "file").write_text("in the way")
    unwritable = infer(scan, "-o", tmp_path / "file" / "out", "--model", tiny_bundle)
    for result, name in ((missing, "nowhere.nii.gz"), (unwritable, "file")):
        assert result.exit_code == 1
        assert len(result.stderr.strip().splitlines()) == 1
        assert name in result.stderr


def test_a_tampered_bundle_is_refused_before_anything_runs(tmp_path, tiny_bundle):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    data = bytearray((bundle / "flow.onnx").read_bytes())
    data[-100] ^= 1
    (bundle / "flow.onnx").write_bytes(data)
    result = infer(brain_file(tmp_path / "scan.nii"), "-o", tmp_path / "out", "--model", bundle)
    assert result.exit_code == 1
    assert "was modified" in result.stderr
    assert outputs(tmp_path / "out") == set()


def test_neither_input_nor_demo_is_a_usage_error(tmp_path):
    assert infer("-o", tmp_path).exit_code == 2
    assert infer(tmp_path / "x.nii", "--demo").exit_code == 2


def test_the_demo_is_above_the_threshold_and_the_same_brain_without_lesion_below(tmp_path):
    with_lesion = infer("--demo", "-o", tmp_path / "demo", "--json")
    healthy = infer(DEMO_HEALTHY_VOLUME, "-o", tmp_path / "healthy", "--json", "--no-png")
    assert json.loads(with_lesion.stdout)["volume"]["abnormal"] is True
    assert json.loads(healthy.stdout)["volume"]["abnormal"] is False
    assert outputs(tmp_path / "demo") == {f"demo{suffix}" for suffix in SUFFIXES}


def test_what_is_packaged_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in DEFAULT_BUNDLE.iterdir()) < 20e6
    assert DEMO_VOLUME.stat().st_size < 2e6
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "assets/**/*" in project["tool"]["setuptools"]["package-data"]["ssn"]
    assert sys.version_info >= (3, 11)
