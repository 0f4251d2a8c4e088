"""What `ssn-infer` computes and warns of: voxels, poses and tissue unlike those that the model knows."""

import json
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from brains import brain_array, brain_file, save
from commands import run

from ssn.cli.infer import app
from ssn.runtime.packaged import DEMO_VOLUME
from ssn.runtime.result import alignment_doubts, extent_doubts, voxel_doubts

infer = partial(run, app)


@pytest.mark.parametrize(
    ("voxel_mm", "known_mm", "doubted"), [(5, 1, True), (2, 5, True), (1.4, 1, False), (5, 4, False), (0.5, 1, False)]
)
def test_voxels_unlike_those_calibrated_on_are_a_doubt(voxel_mm, known_mm, doubted):
    assert bool(voxel_doubts(voxel_mm, known_mm)) == doubted
    assert not voxel_doubts(voxel_mm, None), "where it was not recorded nothing can be said"


@pytest.mark.parametrize(("share", "threshold", "doubted"), [(0.2, 2.5, True), (0.1, 2.5, False), (0.2, 2.4, False)])
def test_more_of_a_brain_above_the_threshold_than_a_lesion_takes_is_a_doubt(bundle, share, threshold, doubted):
    brain = np.ones((10, 10, 10), bool)
    mask = (np.arange(1000) < share * 1000).reshape(brain.shape).astype(np.uint8)
    result = SimpleNamespace(brain=brain, mask=mask, threshold=threshold)
    for aligned in (False, True):
        found = extent_doubts(result, bundle, aligned=aligned)
        assert [line[:45] for line in found] == ["20% of its brain is above the threshold, of a"] * doubted
        assert ["--align" in line for line in found] == [not aligned] * doubted, "what is done already is no advice"


@pytest.mark.parametrize("known", [False, True])
def test_a_volume_that_is_aligned_otherwise_than_those_it_is_compared_with_is_a_doubt(bundle, known):
    bundle = replace(bundle, calibration=replace(bundle.calibration, aligned_to_itself=known))
    assert alignment_doubts(bundle, aligned=known) == []
    (line,) = alignment_doubts(bundle, aligned=not known)
    assert line.startswith("it was not aligned" if known else "it was aligned")
    assert f"leave out {'--no-align' if known else '--align'}, or do not trust" in line


def test_what_lies_below_the_grid_gets_no_score_and_is_said(tmp_path, tiny_bundle):
    data, affine = brain_array((4.0, 4.0, 4.0))
    inside = np.argwhere(data > 0)
    low, (x, y) = inside[:, 2].min(), inside.mean(0).astype(int)[:2]
    neck = np.pad(data, ((0, 0), (0, 0), (40, 0)))  # 160 mm of it, where the grid goes on for some 40
    neck[x - 3 : x + 4, y - 3 : y + 4, 2 : low + 42] = data[data > 0].mean()
    affine = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -40], [0, 0, 0, 1]])
    scan = save(tmp_path / "scan.nii", neck, affine)
    result = infer(scan, "-o", tmp_path / "out", "--model", tiny_bundle, "--no-png")
    assert result.exit_code == 0, result.stderr
    (warning,) = [line for line in result.stderr.splitlines() if "outside of what the model looks at" in line]
    told = float(re.search(r"([0-9]+) ml of it", warning)[1])
    scores = np.asarray(nib.load(tmp_path / "out" / "scan_anomaly.nii.gz").dataobj)
    assert scores[x, y, 2] == 0
    assert scores[x, y, low + 40] != 0
    silent = (neck > 0) & (scores == 0)
    assert silent.sum() * 0.064 < told < silent.sum() * 0.064 + 49 * 0.064 * 4, "the Gaussian reaches a little farther"


def test_the_packaged_model_doubts_thick_slices(tmp_path):
    scan = brain_file(tmp_path / "scan.nii.gz", (1.5, 1.5, 5))
    result = infer(scan, "-o", tmp_path / "out", "--no-png")
    assert result.exit_code == 0, result.stderr
    assert "its voxels are 5 mm long, those of the healthy volumes that it is compared with 1 mm" in result.stderr


def test_a_brain_that_is_upside_down_in_its_header_is_doubted(tmp_path):
    image = nib.load(DEMO_VOLUME)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:, :, ::-1].copy(), image.affine), tmp_path / "scan.nii")
    result = infer(tmp_path / "scan.nii", "-o", tmp_path / "out", "--no-png", "--json")
    assert result.exit_code == 0, result.stderr
    assert "more like the healthy t1 volumes when it is turned upside down (" in result.stderr
    found = json.loads(result.stdout)["input"]
    assert found["doubts"][0] in result.stderr
    assert -1 < found["likeness"] < 0.4
