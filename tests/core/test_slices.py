"""What the encoder sees of a volume, and which map cells have brain in them."""

import numpy as np
import pytest
from brains import brain_file

from ssn.core.geometry import GridConfig
from ssn.core.slices import cut_slices
from ssn.core.volume import read_volume

CELLS = 48


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    return read_volume(brain_file(tmp_path_factory.mktemp("scan") / "scan.nii"))


@pytest.fixture(scope="module")
def stack(volume):
    return cut_slices(volume, GridConfig(), CELLS)


def test_occupancy_is_the_share_of_a_cell_that_is_brain(stack):
    inside = stack.placement.to_canonical(
        stack.brain.astype(np.float32), stack.first, stack.first + len(stack.occupancy)
    )
    step = GridConfig().plane // CELLS
    expected = inside.reshape(len(stack.occupancy), 3, CELLS, step, CELLS, step).mean((1, 3, 5))
    np.testing.assert_allclose(stack.occupancy, expected, atol=1e-5)
    assert 0 < np.mean(stack.occupancy > 0.5) < 1


@pytest.mark.parametrize(("kind", "of_a_window"), [("slab", lambda w: w.mean(1)), ("middle", lambda w: w[:, 1])])
def test_a_thick_slice_is_the_mean_of_its_window_or_the_middle_one(volume, stack, kind, of_a_window):
    thick = cut_slices(volume, GridConfig(), CELLS, thick=kind)
    assert (stack.slices_a_window, thick.slices_a_window) == (3, 1)
    expected = of_a_window(stack.slices.reshape(-1, 3, *stack.slices.shape[1:]))
    np.testing.assert_allclose(thick.slices, expected, atol=1e-5)
    np.testing.assert_array_equal(stack.thickened(kind).slices, expected)
    np.testing.assert_array_equal(thick.occupancy, stack.occupancy)
    assert stack.thickened(None) is stack


def test_a_part_of_a_stack_is_some_of_its_windows(stack):
    for whole in (stack, stack.thickened("slab")):
        each, part = whole.slices_a_window, whole.part(3, 5)
        assert (part.first, part.slices_a_window) == (whole.first + 3, each)
        np.testing.assert_array_equal(part.occupancy, whole.occupancy[3:5])
        np.testing.assert_array_equal(part.slices, whole.slices[3 * each : 5 * each])
