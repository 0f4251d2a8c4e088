"""The parity check: what it measures, and what it lets pass."""

import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import written_engines
from brains import LESION_AT, brain_array, save
from typer.testing import CliRunner

from ssn.cli.export import app
from ssn.core.bundle import load_bundle
from ssn.core.errors import DataError
from ssn.export.check import check_bundle, ways
from ssn.export.parity import (
    DECIDED_Z,
    TOLERANCES,
    Answer,
    Drift,
    Sample,
    Tolerance,
    answers,
    answers_on_cpu,
    excerpt,
    excesses,
    measure,
    prepare,
    tightened,
)
from ssn.export.torch_reference import torch_method
from ssn.train.checkpoint import save_checkpoint

ZOOMS = (4.0, 4.0, 6.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A volume and its lesion mask."""
    folder = tmp_path_factory.mktemp("scan")
    data, affine = brain_array(ZOOMS)
    place = [affine[i, i] * np.arange(n) + affine[i, 3] for i, n in enumerate(data.shape)]
    grid = np.meshgrid(*place, indexing="ij")
    ball = sum((p - c) ** 2 for p, c in zip(grid, LESION_AT, strict=True)) < 16**2
    scan = save(folder / "scan.nii.gz", data, affine)
    return scan, save(folder / "mask.nii.gz", ball & (data > 0), affine, np.uint8)


@pytest.fixture(scope="module")
def sample(bundle, files):
    return prepare(bundle, *files)


@pytest.fixture(scope="module")
def reference(bundle, sample):
    return answers_on_cpu(bundle, [sample])


def test_nothing_differs_from_itself(bundle, sample, reference):
    drift = measure(bundle, [sample], reference, reference)
    assert (drift.log_likelihood, drift.map_z, drift.dice, drift.auroc) == (0, 0, 1, 0)
    assert excesses(drift, TOLERANCES["fp32"]) == []


def test_torch_agrees_with_onnx_runtime_in_single_precision(bundle, tiny_detector, sample, reference):
    drift = measure(bundle, [sample], reference, answers(bundle, [sample], torch_method(tiny_detector)))
    assert drift.log_likelihood > 0, "two programs never agree to the last bit: torch did run"
    assert excesses(drift, TOLERANCES["fp32"]) == []


def voxel_where(condition):
    return tuple(np.argwhere(condition)[0])


def test_an_error_is_measured_where_it_is(bundle, sample, reference):
    (answer,) = reference
    values, score_map = answer.log_likelihood.copy(), answer.score_map.copy()
    values[7] += 0.25
    score_map[voxel_where(sample.stack.brain & (np.abs(score_map) < DECIDED_Z))] += 0.75
    drift = measure(bundle, [sample], reference, [replace(answer, log_likelihood=values, score_map=score_map)])
    assert drift.log_likelihood == pytest.approx(0.25, abs=1e-6)
    assert drift.log_likelihood_mean == pytest.approx(0.25 / values.size, rel=1e-3)
    assert drift.map_z == pytest.approx(0.75, abs=1e-5)


def test_far_above_any_threshold_a_map_error_counts_relative_to_the_map(bundle, sample, reference):
    (answer,) = reference
    far = answer.score_map + 4 * DECIDED_Z * sample.stack.brain
    moved = far.copy()
    moved[voxel_where(far > 3 * DECIDED_Z)] *= 1.02
    drift = measure(bundle, [sample], [replace(answer, score_map=far)], [replace(answer, score_map=moved)])
    assert drift.map_z == pytest.approx(0.02 * DECIDED_Z, rel=1e-3)


def test_a_shifted_map_keeps_its_auroc_and_loses_its_dice(bundle, sample, reference):
    (answer,) = reference
    middle = float(np.median(answer.score_map[sample.stack.brain]))
    level = replace(bundle, calibration=replace(bundle.calibration, threshold=middle))
    shifted = replace(answer, score_map=answer.score_map + 1)
    drift = measure(level, [sample], reference, [shifted])
    assert drift.auroc == pytest.approx(0, abs=1e-6)
    assert drift.dice < TOLERANCES["int8"].dice
    assert [text.split()[0] for text in excesses(drift, TOLERANCES["int8"])] == ["map", "Dice"]


def test_an_excerpt_has_the_place_that_differs_most_and_gives_the_same_there(bundle, sample, reference):
    (answer,) = reference
    for index in (0, len(answer.places) // 3, -1):
        values = answer.log_likelihood.copy()
        values[index] = np.inf
        part = excerpt([sample], reference, [replace(answer, log_likelihood=values)], 4)
        (found,) = answers_on_cpu(bundle, [part])
        assert len(part.stack.occupancy) == 4
        assert answer.places[index] in found.places
        shared = np.isin(answer.places, found.places)
        np.testing.assert_allclose(found.log_likelihood, answer.log_likelihood[shared], atol=1e-5)


@pytest.mark.parametrize("field", ["log_likelihood", "map_z", "dice", "auroc"])
def test_not_a_number_is_beyond_every_tolerance(field):
    perfect = Drift(0, 0, 1, 0, 1, 0)
    assert len(excesses(replace(perfect, **{field: float("nan")}), TOLERANCES["int8"])) == 1


def test_not_a_number_in_any_map_is_what_the_maps_differ_by(bundle, sample, reference):
    (answer,) = reference
    broken = replace(answer, score_map=answer.score_map * np.nan)
    for given in ([broken, answer], [answer, broken]):
        assert np.isnan(measure(bundle, [sample] * 2, [answer] * 2, given).map_z)


def test_lower_precision_never_has_the_narrower_tolerance():
    single, half, integers = (TOLERANCES[name] for name in ("fp32", "fp16", "int8"))
    for fine, coarse in ((single, half), (half, integers)):
        assert fine.log_likelihood < coarse.log_likelihood
        assert fine.map_z < coarse.map_z
        assert fine.auroc < coarse.auroc
        assert fine.dice > coarse.dice


def test_a_share_of_a_tolerance_is_a_share_of_every_change_that_it_allows():
    assert tightened(Tolerance(0.2, 1.0, 0.9, 0.04), 0.5) == Tolerance(0.1, 0.5, 0.95, 0.02)


def hand_made(*maps, voxel_ml=0.5):
    """Answers whose maps are these values (n,), and samples to which they belong; what is above 1 is the mask."""
    answer = [Answer(np.arange(2), np.float32([0, 1]), np.float32(one).reshape(-1, 1, 1)) for one in maps]
    brain = np.ones((len(maps[0]), 1, 1), bool)
    return answer, [Sample("scan", "0", SimpleNamespace(brain=brain), voxel_ml) for _ in maps]


LEVEL = SimpleNamespace(calibration=SimpleNamespace(threshold=1.0))


def test_masks_are_compared_over_all_volumes_together_if_they_have_a_millilitre():
    expected, samples = hand_made([2, 2, 2, 0], [2, 0, 0, 0])
    found, _ = hand_made([2, 2, 2, 0], [0, 0, 0, 2])
    assert measure(LEVEL, samples, expected, found).dice == pytest.approx(2 * 3 / 8)
    _, small = hand_made([2, 2, 2, 0], [2, 0, 0, 0], voxel_ml=0.24)
    drift = measure(LEVEL, small, expected, found)
    assert (drift.dice, drift.auroc) == (None, None)
    assert [text.split()[0] for text in excesses(drift, TOLERANCES["int8"])] == ["map"], "nothing is said of either"


def test_the_largest_change_of_any_volume_s_auroc_counts():
    lesion = np.array([True, False, False, False]).reshape(-1, 1, 1)
    expected, samples = hand_made([3, 2, 1, 0], [3, 2, 1, 0])
    found, _ = hand_made([0, 1, 2, 3], [2.5, 2, 1, 0])
    marked = [replace(sample, lesion=lesion) for sample in samples]
    assert measure(LEVEL, marked, expected, found).auroc == pytest.approx(1)
    assert measure(LEVEL, [samples[0], marked[1]], expected, found).auroc == 0
    found[0].score_map[0] = np.inf
    assert np.isnan(measure(LEVEL, marked, expected, found).auroc)


def test_a_mask_needs_no_scikit_learn(bundle, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as where it is not installed
    assert prepare(bundle, *files).lesion.any()


def test_a_mask_of_another_shape_is_refused(bundle, files, tmp_path):
    other = save(tmp_path / "other.nii.gz", *brain_array((5.0, 5.0, 5.0)))
    with pytest.raises(DataError, match="its own mask"):
        prepare(bundle, files[0], other)


def test_a_mask_of_nothing_or_of_the_whole_brain_is_refused(bundle, files, tmp_path):
    data, affine = brain_array(ZOOMS)
    for name, marked, message in (("all", data > 0, "leaves no healthy voxel"), ("none", data == 0, "holds no lesion")):
        with pytest.raises(DataError, match=f"{name}.nii.gz: {message}"):
            prepare(bundle, files[0], save(tmp_path / f"{name}.nii.gz", marked, affine, np.uint8))


def test_every_way_is_run_or_says_why_not(bundle, sample):
    rows = {row.name: row for row in check_bundle(bundle, [sample])}
    half = rows["fp16 graph, rounded on cpu"]
    assert half.drift.log_likelihood > 0
    assert half.remark.startswith("no engine computes it yet")
    assert all((row.drift is None) == (row.problem is not None) for row in rows.values())
    assert {way.name for way in ways(bundle)} == set(rows)


def test_engines_of_other_graphs_do_not_say_what_stays_in_fp32(tiny_bundle, tmp_path):
    bundle = load_bundle(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    written_engines.write(bundle, graphs={"flow.onnx": "0" * 64})
    assert ways(bundle)[0].remark.startswith("no engine computes it yet")
    written_engines.write(bundle, capability="86")
    assert ways(bundle)[0].remark is None


def check(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_check_prints_a_table_and_json(tiny_bundle, files):
    scan, mask = files
    result = check(tiny_bundle, "--volume", scan, "--mask", mask)
    assert result.exit_code == 0, result.output
    assert "fp16 graph" in result.stdout
    assert "allowed in fp16: log p 0.2, map 0.2 z" in result.stdout
    found = json.loads(check(tiny_bundle, "--volume", scan, "--mask", mask, "--json").stdout)
    rows = {row["name"]: row for row in found["backends"]}
    assert rows["fp16 graph, rounded on cpu"]["drift"]["auroc"] is not None
    assert found["measured_on"][0]["name"] == "scan.nii.gz"


def test_check_exits_with_1_beyond_the_tolerance_of_what_computes(
    tiny_bundle, tiny_detector, files, monkeypatch, tmp_path
):
    save_checkpoint(tmp_path / "model", tiny_detector)
    for precision in ("fp16", "fp32"):
        monkeypatch.setitem(TOLERANCES, precision, replace(TOLERANCES[precision], log_likelihood=1e-9))
    result = check(tiny_bundle, "--volume", files[0], "--checkpoint", tmp_path / "model")
    assert result.exit_code == 1
    assert "BEYOND" in result.stdout
    errors = result.stderr.strip().splitlines()
    assert errors[0].startswith("Error: torch: log-likelihood off by")
    assert not any("fp16 graph" in line for line in errors), "no engine computes it"
    assert "not held to that: fp16 graph, rounded on cpu: no engine computes it yet" in result.stdout


def test_a_mask_that_lies_elsewhere_is_refused(bundle, files, tmp_path):
    image = nib.load(files[1])
    moved = image.affine.copy()
    moved[:3, 3] += (0, 8, 0)
    other = save(tmp_path / "moved.nii.gz", np.asanyarray(image.dataobj), moved, np.uint8)
    with pytest.raises(DataError, match=r"moved\.nii\.gz: lies elsewhere than .*scan\.nii\.gz"):
        prepare(bundle, files[0], other)
    for shift in (1.9, 2.1):
        moved = image.affine.copy()
        moved[0, 3] += shift
        save(tmp_path / f"by {shift}.nii.gz", np.asanyarray(image.dataobj), moved, np.uint8)
    assert prepare(bundle, files[0], tmp_path / "by 1.9.nii.gz").lesion.any(), "less than half of 4 mm"
    with pytest.raises(DataError, match="lies elsewhere"):
        prepare(bundle, files[0], tmp_path / "by 2.1.nii.gz")
    turned = image.as_reoriented(np.array([[1, -1], [0, 1], [2, 1]]))  # the same places, another order
    nib.save(turned, tmp_path / "turned.nii.gz")
    assert prepare(bundle, files[0], tmp_path / "turned.nii.gz").lesion.any()


def test_check_refuses_what_it_cannot_use_in_one_line(tiny_bundle, tmp_path, files):
    assert check(tiny_bundle, "--volume", files[0], "--mask", files[1], "--mask", files[1]).exit_code == 2
    damaged = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (damaged / "flow.onnx").write_bytes(b"nonsense")
    for arguments in ((damaged, "--volume", files[0]), (tiny_bundle, "--volume", tmp_path / "none.nii")):
        result = check(*arguments)
        assert result.exit_code == 1
        assert len(result.stderr.strip().splitlines()) == 1
