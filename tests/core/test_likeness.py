"""Another contrast and a turned brain are told by where grey values lie; a brain as it should be raises no doubt."""

import nibabel as nib
import numpy as np
import pytest
from brains import brain_array, save

from ssn.core.bundle import load_bundle
from ssn.core.geometry import GridConfig
from ssn.core.likeness import (
    Likeness,
    block_edges,
    block_shape,
    compare,
    grey_blocks,
    mean_blocks,
    unlike_the_rest,
)
from ssn.core.slices import cut_slices
from ssn.core.volume import read_volume
from ssn.runtime.packaged import DEFAULT_BUNDLE, DEMO_VOLUME

EDGES = block_edges(GridConfig(), 12)


@pytest.fixture
def healthy():
    """Blocks with grey values that no turn maps to themselves, in a part of the grid."""
    blocks = np.full(block_shape(64, 12), np.nan, np.float32)
    blocks[5:28, 1:5, 1:5] = np.random.default_rng(3).normal(size=(23, 4, 4))
    return blocks


def _upside_down(blocks):
    turned = blocks.copy()
    turned[5:28] = blocks[5:28][::-1]
    return turned


def test_a_volume_that_is_as_healthy_ones_are_is_most_like_them_as_it_lies(healthy):
    found = compare(healthy, healthy, EDGES)
    assert found.value == pytest.approx(1)
    assert found.turn is None
    assert found.doubts("the healthy t1 volumes") == []


@pytest.mark.parametrize(
    ("turn", "name"),
    [
        (lambda blocks: blocks[:, ::-1], "back to front"),
        (_upside_down, "upside down"),
        (lambda blocks: _upside_down(blocks)[:, ::-1], "upside down and back to front"),
    ],
)
def test_a_turned_volume_is_told_how_to_be_turned(healthy, turn, name):
    found = compare(turn(healthy), healthy, EDGES)
    assert (found.turn, found.turned) == (name, pytest.approx(1))
    (doubt,) = found.doubts("the healthy t1 volumes")
    assert f"turned {name} (correlation 1.00, as it lies {found.value:.2f})" in doubt


def test_a_reversed_contrast_is_doubted_and_no_turn_is_advised(healthy):
    (doubt,) = compare(-healthy, healthy, EDGES).doubts("the healthy t1 volumes")
    assert "healthy t1 volumes do (correlation -1.00): another contrast" in doubt


@pytest.mark.parametrize(
    "look", [lambda healthy: np.full_like(healthy, np.nan), lambda healthy: np.where(np.isfinite(healthy), 1, healthy)]
)
def test_what_cannot_be_compared_is_doubted(healthy, look):
    other = look(healthy).astype(np.float32)
    for own, known in ((other, healthy), (healthy, other)):
        found = compare(own, known, EDGES)
        assert found.value is None
        (doubt,) = found.doubts("the healthy t1 volumes")
        assert doubt.startswith("too little of it is solid where the healthy t1 volumes are")


@pytest.mark.parametrize(("depth", "enough"), [(6, False), (7, True)])
def test_fewer_than_a_hundred_blocks_are_no_brain_to_compare(healthy, depth, enough):
    few = healthy.copy()
    few[5 + depth :] = np.nan
    assert (compare(few, healthy, EDGES).value is not None) == enough


@pytest.mark.parametrize(("value", "doubted"), [(0.19, True), (0.21, False)])
def test_grey_values_that_hardly_lie_as_healthy_ones_are_doubted_though_they_are_not_reversed(value, doubted):
    assert [line[:25] for line in Likeness(value).doubts("others")] == ["its grey values do not li"] * doubted


def test_a_volume_s_own_brain_is_not_among_what_it_is_compared_with(healthy):
    beyond = healthy.copy()
    beyond[5:28, 1:5] = np.where(np.isfinite(healthy[5:28, 1:5]), healthy[5:28, 1:5], 20)
    beyond[5:28, 1:5, 0] = -20
    assert unlike_the_rest([beyond, healthy, healthy], EDGES, "the others") == [[], [], []]


def test_places_that_few_healthy_volumes_reach_are_left_out(healthy):
    alone = healthy.copy()
    alone[0, 0, 0] = 99
    mean = mean_blocks([healthy, healthy + 2, healthy + 4, alone])
    assert np.isnan(mean[0, 0, 0])
    inside = np.isfinite(healthy)
    np.testing.assert_allclose(mean[inside], healthy[inside] + 1.5, rtol=1e-5)


def test_the_one_that_lies_otherwise_than_the_rest_is_found(healthy):
    noise = np.random.default_rng(1)
    volumes = [healthy + noise.normal(size=healthy.shape).astype(np.float32) / 2 for _ in range(5)]
    volumes[3] = _upside_down(volumes[3])
    doubts = unlike_the_rest(volumes, EDGES, "the others")
    assert [len(found) for found in doubts] == [0, 0, 0, 1, 0]
    assert "more like the others when it is turned upside down (" in doubts[3][0]
    assert unlike_the_rest([healthy, -healthy], EDGES, "the other") == [[], []], "which of two is wrong cannot be told"


@pytest.mark.parametrize(("grid", "cells"), [(GridConfig(), 12), (GridConfig(depth=189), 3)])
@pytest.mark.parametrize("thick", [None, "slab"])
def test_blocks_are_means_over_their_cells_with_brain_whatever_the_grid(tmp_path, grid, cells, thick):
    volume = read_volume(save(tmp_path / "scan.nii", *brain_array((6, 6, 6), lesion=False)))
    stack = cut_slices(volume, grid, cells, thick=thick)
    each, step = stack.slices_a_window, grid.plane // cells
    found = {}
    for window, row, column in np.argwhere(stack.occupancy >= 0.5):
        grey = stack.slices[window * each + each // 2, row * step + step // 2, column * step + step // 2]
        found.setdefault(((window + stack.first) // 2, row // 2, column // 2), []).append(grey)
    expected = np.full(block_shape(grid.windows, cells), np.nan)
    for place, values in found.items():
        if len(values) >= 2:
            expected[place] = np.mean(values)
    assert np.isfinite(expected).sum() > 20
    np.testing.assert_allclose(grey_blocks(stack), expected, atol=1e-5)


def _demo(path, turn=lambda data: data):
    image = nib.load(DEMO_VOLUME)
    nib.save(nib.Nifti1Image(turn(np.asarray(image.dataobj)).copy(), image.affine), path)
    return path


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (lambda data: data, None),
        (lambda data: data[:, ::-1], "turned back to front"),
        (lambda data: data[:, :, ::-1], "turned upside down ("),
        (lambda data: data[:, ::-1, ::-1], "turned upside down and back to front"),
        (lambda data: np.where(data > 0, data.max() + 1 - data, 0).astype(np.uint8), "another contrast"),
    ],
)
def test_the_packaged_model_doubts_a_turned_brain_and_another_contrast(tmp_path, turn, said):
    bundle = load_bundle(DEFAULT_BUNDLE)
    volume = read_volume(_demo(tmp_path / "scan.nii", turn))
    edges = block_edges(bundle.spec.grid, bundle.spec.cells)
    found = compare(grey_blocks(bundle.spec.cut(volume)), bundle.calibration.grey, edges)
    doubts = found.doubts("the healthy t1 volumes")
    assert doubts == [] if said is None else said in doubts[0]
