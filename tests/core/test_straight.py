"""A tilted head is turned straight, and a map of it turned back onto the voxels that were read."""

import numpy as np
import pytest
from brains import brain_array, save

from ssn.core.geometry import PAPER_GRID, GridConfig
from ssn.core.slices import cut_slices
from ssn.core.straight import straighten
from ssn.core.tilt import Tilt
from ssn.core.volume import read_volume

TILT = Tilt(pitch=15, roll=-6, yaw=9)


def read(tmp_path, data, affine):
    volume = read_volume(save(tmp_path / "scan.nii", data, affine))
    return volume, cut_slices(volume, GridConfig(), 12)


@pytest.mark.parametrize("zooms", [(2.0, 2.0, 2.0), (1.0, 1.5, 2.0)])
def test_a_tilted_brain_becomes_the_straight_one(tmp_path, zooms):
    volume, stack = read(tmp_path, *brain_array(zooms, turn=TILT.matrix))
    straight, _ = straighten(volume, stack, TILT)
    assert straight.zooms == (1, 1, 1)
    expected, _ = brain_array((1.0, 1.0, 1.0))
    own = [np.argwhere(data > 0) for data in (straight.data, expected)]
    spans = [(places.max(0) - places.min(0)) for places in own]
    np.testing.assert_allclose(*spans, atol=max(zooms) + 1)
    part = [data[tuple(slice(n // 2 - 40, n // 2 + 40) for n in data.shape)] for data in (straight.data, expected)]
    assert np.corrcoef(*(values.ravel() for values in part))[0, 1] > 0.9, "the same tissue at the same places"


def test_what_is_turned_back_lies_where_it_was_read(tmp_path):
    volume, stack = read(tmp_path, *brain_array((1.5, 1.8, 2.0), turn=TILT.matrix))
    straight, turn = straighten(volume, stack, TILT)
    back = turn.turn_back(straight.data, stack)
    assert back.shape == volume.data.shape
    assert not back[~stack.brain].any(), "nothing outside of the brain"
    from_middle = np.argwhere(stack.brain) - np.array(back.shape) / 2
    inner = np.zeros_like(stack.brain)
    inner[stack.brain] = np.linalg.norm(from_middle, axis=1) < 20
    error = np.abs(back - volume.data)[inner]
    assert np.median(error) < 10, "but for interpolation: the grey values vary by some hundred"
    assert np.corrcoef(back[inner], volume.data[inner])[0, 1] > 0.98


def test_places_lead_there_and_back(tmp_path):
    volume, stack = read(tmp_path, *brain_array((1.5, 1.8, 2.0), turn=TILT.matrix))
    straight, turn = straighten(volume, stack, TILT)
    ramps = np.indices(straight.data.shape).astype(np.float32)
    back = np.stack([turn.turn_back(ramp, stack) for ramp in ramps])
    read_at = np.einsum("ij,jxyz->ixyz", turn.matrix, back) + turn.origin[:, None, None, None]
    np.testing.assert_allclose(read_at[:, stack.brain], np.argwhere(stack.brain).T, atol=1e-3)


@pytest.mark.parametrize("nothing", [-1000, 5000])
def test_the_background_has_no_say_in_what_is_made_straight(tmp_path, nothing):
    data, affine = brain_array((1.5, 1.8, 2.0), turn=TILT.matrix)
    expected, _ = straighten(*read(tmp_path, data, affine), TILT)
    straight, _ = straighten(*read(tmp_path, np.where(data == 0, nothing, data), affine), TILT)
    brain = expected.data != 0
    np.testing.assert_array_equal(straight.data != nothing, brain)
    np.testing.assert_array_equal(straight.data[brain], expected.data[brain])
    inner = np.percentile(data[data > 0], [0, 100])
    assert inner[0] - 1 <= straight.data[brain].min() <= straight.data[brain].max() <= inner[1]


@pytest.mark.parametrize(
    ("axis", "below", "turned"),
    [(0, False, False), (1, False, False), (2, False, False), (0, True, False), (1, True, False), (2, True, True)],
)
def test_a_brain_that_the_field_of_view_cuts_off_stays_as_it_is_but_for_its_neck(tmp_path, axis, below, turned):
    data, affine = brain_array((2.0, 2.0, 2.0))
    first, *_, last = np.flatnonzero(data.any(tuple({0, 1, 2} - {axis})))
    kept = range(first + 7, data.shape[axis]) if below else range(last - 7)
    volume, stack = read(tmp_path, data.take(kept, axis), affine)
    assert (straighten(volume, stack, TILT) is not None) == turned


def test_thick_slices_stay_as_they_are(tmp_path):
    volume, stack = read(tmp_path, *brain_array((1.5, 1.5, 3.0), turn=TILT.matrix))
    assert straighten(volume, stack, TILT) is None


def test_the_published_window_takes_voxels_as_they_are(tmp_path):
    volume = read_volume(save(tmp_path / "scan.nii", *brain_array((2.0, 2.0, 2.0))))
    assert straighten(volume, cut_slices(volume, PAPER_GRID, 12), TILT) is None
