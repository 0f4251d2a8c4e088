"""The map lies on its lesion whatever the orientation, obliqueness and voxel size.

The backend here is a real one by the interface, with an answer known in advance: it finds bright voxels
unlikely. All else, from file to file, is the product's own path.
"""

import itertools
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from brains import LESION_AT, brain_array, save

from ssn.core.bundle import Bundle, ModelSpec
from ssn.core.geometry import PAPER_GRID, GridConfig
from ssn.core.likeness import grey_blocks
from ssn.core.scoring import Calibration
from ssn.core.tilt import Tilt
from ssn.core.volume import read_volume
from ssn.runtime.outputs import write_outputs
from ssn.runtime.pipeline import infer_volume

CELLS = 48


class BrightnessBackend:
    name = "brightness"
    max_slices = None
    at_once = 1

    def describe(self):
        return {"backend": self.name}

    def run(self, batches, times):
        for batch in batches:
            n, _, h, _ = batch.slices.shape
            step = h // CELLS
            cells = batch.slices.reshape(n // 3, 3, CELLS, step, CELLS, step).mean((1, 3, 5))
            yield -cells.ravel()[batch.places - batch.first * CELLS**2]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def bundle_for(tmp_path, grid):
    spec = ModelSpec("test", "t1", grid, "robust", CELLS, 1, 0.5)
    shape = (grid.windows, CELLS, CELLS)
    tables = (np.full(shape, -0.35, np.float32), np.full(shape, 0.1, np.float32))
    calibration = Calibration(*tables, 1.0, 2.0, 3.0, 0.01, np.arange(20, dtype=np.float32))
    return Bundle(tmp_path, {}, "0" * 64, spec, calibration)


def orientations():
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            yield np.array([[axis, flip] for axis, flip in zip(axes, flips, strict=True)], float)


def map_centre(path):
    """World position of the map's highest half, weighted by the map."""
    image = nib.load(path)
    data = np.asanyarray(image.dataobj)
    weights = np.where(data > data.max() / 2, data, 0)
    index = np.argwhere(weights > 0)
    centre = np.average(index, axis=0, weights=weights[weights > 0])
    return nib.affines.apply_affine(image.affine, centre)


def run(tmp_path, data, affine, grid=None, **header):
    path = save(tmp_path / "scan.nii.gz", data, affine, **header)
    bundle, backend = bundle_for(tmp_path, grid or GridConfig()), BrightnessBackend()
    result = infer_volume(path, bundle, backend)
    write_outputs(result, bundle, backend, tmp_path / "out", "scan", picture=False)
    return tmp_path / "out" / "scan_anomaly.nii.gz"


@pytest.mark.parametrize("orientation", list(orientations()), ids=lambda o: "".join(nib.orientations.ornt2axcodes(o)))
def test_the_map_lies_on_its_lesion_in_every_orientation(tmp_path, orientation):
    canonical = nib.Nifti1Image(*brain_array((3.0, 3.0, 3.5)))
    image = canonical.as_reoriented(orientation)
    written = run(tmp_path, image.get_fdata(), image.affine)
    assert nib.load(written).shape == image.shape
    np.testing.assert_allclose(nib.load(written).affine, image.affine, atol=1e-5)
    assert np.linalg.norm(map_centre(written) - LESION_AT) < 4.0, "within a cell of the feature grid"


@pytest.mark.parametrize("zooms", [(2.0, 2.0, 2.0), (1.3, 1.3, 6.0), (5.0, 2.2, 2.2), (2.5, 4.0, 2.5)])
def test_the_map_lies_on_its_lesion_whatever_the_voxel_size(tmp_path, zooms):
    written = run(tmp_path, *brain_array(zooms))
    assert np.linalg.norm(map_centre(written) - LESION_AT) < 4.0


def test_the_map_of_an_oblique_volume_lies_on_its_lesion(tmp_path):
    data, affine = brain_array()
    angle = np.deg2rad(14)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    oblique = np.eye(4)
    oblique[:3, :3] = turn @ np.diag([1, 1, 1])
    oblique[:3, 3] = (7, -31, 12)
    written = run(tmp_path, data, oblique @ affine)
    expected = nib.affines.apply_affine(oblique, LESION_AT)
    assert np.linalg.norm(map_centre(written) - expected) < 4.0


@pytest.mark.parametrize("orientation", list(orientations()), ids=lambda o: "".join(nib.orientations.ornt2axcodes(o)))
def test_the_map_of_a_tilted_head_lies_on_its_lesion_in_every_orientation(tmp_path, orientation):
    bundle, backend = bundle_for(tmp_path, GridConfig()), BrightnessBackend()
    healthy = read_volume(save(tmp_path / "healthy.nii", *brain_array((4.0, 4.0, 4.0), lesion=False)))
    grey = grey_blocks(bundle.spec.cut(healthy))
    bundle = replace(bundle, calibration=replace(bundle.calibration, grey=grey))
    turn = Tilt(pitch=-10, roll=8, yaw=5).matrix
    image = nib.Nifti1Image(*brain_array((2.0, 2.0, 1.9), turn=turn)).as_reoriented(orientation)
    result = infer_volume(save(tmp_path / "scan.nii", image.get_fdata(), image.affine), bundle, backend)
    assert result.straightened
    tilt = result.likeness.tilt
    assert (tilt.pitch, tilt.roll, tilt.yaw) == pytest.approx((-10, 8, 5), abs=4)
    write_outputs(result, bundle, backend, tmp_path / "out", "scan", picture=False)
    written = tmp_path / "out" / "scan_anomaly.nii.gz"
    np.testing.assert_allclose(nib.load(written).affine, image.affine, atol=1e-5)
    assert np.linalg.norm(map_centre(written) - turn @ LESION_AT) < 4.0


def test_a_brain_that_is_small_and_off_centre_is_found(tmp_path):
    data, affine = brain_array((2.5, 2.5, 2.5))
    small = np.diag([0.9, 0.9, 0.9, 1.0]) @ affine  # a head a tenth smaller
    padded = np.pad(data, ((30, 2), (1, 22), (9, 4)))
    moved = small.copy()
    moved[:3, 3] -= small[:3, :3] @ (30, 1, 9)
    written = run(tmp_path, padded, moved)
    assert np.linalg.norm(map_centre(written) - 0.9 * LESION_AT) < 4.0


def test_a_cut_off_neck_does_not_move_the_map(tmp_path):
    data, affine = brain_array()
    shifted = affine.copy()
    shifted[:3, 3] += affine[:3, 2] * 15
    written = run(tmp_path, data[:, :, 15:], shifted)
    assert np.linalg.norm(map_centre(written) - LESION_AT) < 4.0


def test_the_published_window_overlays_as_well(tmp_path):
    data, affine = brain_array((1.0, 1.0, 1.0))
    written = run(tmp_path, data, affine, grid=PAPER_GRID)
    assert nib.load(written).shape == data.shape
    assert np.linalg.norm(map_centre(written) - LESION_AT) < 4.0
