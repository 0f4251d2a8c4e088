"""What the encoder sees of a volume, and which map cells have brain in them."""

from dataclasses import replace

import numpy as np
import pytest
from brains import brain_file

from ssn.core.geometry import PAPER_GRID, GridConfig
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


def test_cells_are_computed_from_the_wanted_share_on_and_counted_in_the_whole_grid(stack):
    share = float(np.median(stack.occupancy[stack.occupancy > 0.1]))
    whole = np.zeros((GridConfig().windows, CELLS, CELLS), bool)
    whole[stack.first : stack.first + len(stack.occupancy)] = stack.occupancy >= share
    assert stack.first > 0
    np.testing.assert_array_equal(stack.occupied_places(share), np.flatnonzero(whole))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [-40, 0, 40])
def test_brain_outside_of_the_grid_is_counted_on_either_side(stack, axis, shift):
    axes = list(stack.placement.axes)
    axes[axis] = replace(axes[axis], offset=axes[axis].offset + shift)
    centres = axes[axis].scale * np.arange(axes[axis].native) + axes[axis].offset
    outside = (centres < -0.5) | (centres > 191.5)
    moved = replace(stack, placement=replace(stack.placement, axes=tuple(axes)))
    assert moved.unseen == np.count_nonzero(stack.brain.swapaxes(0, axis)[outside])
    assert stack.unseen == 0


@pytest.mark.parametrize(("normalisation", "around"), [("robust", 0), ("minmax", 0.5)])
def test_what_is_around_the_brain_is_0_or_keeps_its_place_among_the_extremes(volume, normalisation, around):
    data = np.where(volume.data > 0, volume.data - 451, 0)
    data[data.nonzero()] = data[data.nonzero()].clip(-449, 449)
    data[tuple(np.argwhere(volume.data > 0)[0])] = 449
    data[tuple(np.argwhere(volume.data > 0)[-1])] = -449
    cut = cut_slices(replace(volume, data=data), GridConfig(), CELLS, normalisation)
    beyond = (96, 16)  # in the volume, and not in its brain
    np.testing.assert_allclose(cut.slices[len(cut.slices) // 2][beyond], around, atol=1e-3)


def test_the_published_window_has_its_whole_depth(tmp_path):
    volume = read_volume(brain_file(tmp_path / "scan.nii", (1.6, 1.6, 1.6)))
    empty = replace(volume, data=np.where(np.arange(volume.data.shape[2]) < 40, 0, volume.data))
    cut = cut_slices(empty, PAPER_GRID, CELLS)
    assert (cut.first, len(cut.occupancy)) == (0, PAPER_GRID.windows)
    assert not cut.occupancy[0].any()


def test_a_part_of_a_stack_is_some_of_its_windows(stack):
    for whole in (stack, stack.thickened("slab")):
        each, part = whole.slices_a_window, whole.part(3, 5)
        assert (part.first, part.slices_a_window) == (whole.first + 3, each)
        np.testing.assert_array_equal(part.occupancy, whole.occupancy[3:5])
        np.testing.assert_array_equal(part.slices, whole.slices[3 * each : 5 * each])
