"""A head that is turned in its own grid is told by how much, and one that lies as healthy ones do is not."""

import numpy as np
import pytest

from ssn.core.geometry import GridConfig
from ssn.core.likeness import block_edges, block_shape, compare, mean_blocks, unlike_the_rest
from ssn.core.tilt import Tilt, find_tilt

EDGES = block_edges(GridConfig(), 48)


def head(tilt=Tilt(), cells=48):  # noqa: B008 - it is frozen
    """Blocks of an ellipsoid with blobs that no rotation maps to themselves, turned by `tilt`."""
    shape = block_shape(GridConfig().windows, cells)
    places = (np.indices(shape).reshape(3, -1).T - (np.array(shape) - 1) / 2) * block_edges(GridConfig(), cells)
    straight = places[:, ::-1] @ tilt.matrix  # x, y, z: the inverse of a rotation is its transpose
    inside = ((straight / (66, 84, 64)) ** 2).sum(1) < 1
    noise = np.random.default_rng(4)
    grey = np.ones(len(places))
    for middle in noise.uniform((-50, -65, -45), (50, 65, 45), (12, 3)):
        grey += noise.choice([-1, 1]) * np.exp(-(((straight - middle) / 18) ** 2).sum(1) / 2)
    return np.where(inside, grey, np.nan).reshape(shape).astype(np.float32)


@pytest.mark.parametrize("axis", ["pitch", "roll", "yaw"])
@pytest.mark.parametrize("angle", [-24.0, -10.0, 10.0, 24.0])
def test_a_rotation_about_one_axis_is_found_with_its_sign(axis, angle):
    tilt, likeness = find_tilt(head(Tilt(**{axis: angle})), head(), EDGES)
    assert getattr(tilt, axis) == pytest.approx(angle, abs=2)
    assert tilt.degrees == pytest.approx(abs(angle), abs=3)
    assert likeness > 0.95


@pytest.mark.parametrize(("cells", "within"), [(48, 2.5), (24, 4)])
def test_a_rotation_about_all_axes_is_found(cells, within):
    turned = Tilt(14, -8, 6)
    tilt, _ = find_tilt(head(turned, cells), head(cells=cells), block_edges(GridConfig(), cells))
    assert (tilt.pitch, tilt.roll, tilt.yaw) == pytest.approx((14, -8, 6), abs=within)


@pytest.mark.parametrize("up", [-4, 4])
def test_a_head_is_turned_about_its_own_middle_wherever_in_the_grid_that_is(up):
    tilt, likeness = find_tilt(np.roll(head(Tilt(14, -8, 6)), up, 0), np.roll(head(), up, 0), EDGES)
    assert (tilt.pitch, tilt.roll, tilt.yaw) == pytest.approx((14, -8, 6), abs=2.5)
    assert likeness > 0.95


@pytest.mark.parametrize("angle", [-50.0, 50.0])
def test_what_is_turned_farther_than_a_head_lies_is_no_tilt_of_so_much(angle):
    tilt, _ = find_tilt(head(Tilt(yaw=angle)), head(), EDGES)
    assert max(abs(tilt.pitch), abs(tilt.roll), abs(tilt.yaw)) <= 40


def test_what_lies_as_healthy_ones_has_none():
    tilt, likeness = find_tilt(head(), head(), EDGES)
    assert (tilt, likeness) == (Tilt(), pytest.approx(1))
    assert str(tilt) == "none"


def test_among_few_volumes_none_is_called_tilted():
    heads = [head(Tilt(pitch=24)), *(head() for _ in range(5))]
    doubts = unlike_the_rest(heads, EDGES, "the other volumes")
    assert [len(found) for found in doubts] == [1, 0, 0, 0, 0, 0]
    assert "tilted in its grid by 24 degrees against the other volumes" in doubts[0][0]
    assert unlike_the_rest(heads[:5], EDGES, "the other volumes") == [[]] * 5


def person(folds):
    """Blocks of a straight head that is nearly alike from all sides, with a person's own folds."""
    shape = block_shape(GridConfig().windows, 48)
    places = ((np.indices(shape).reshape(3, -1).T - (np.array(shape) - 1) / 2) * EDGES)[:, ::-1]
    radius = ((places / (66, 84, 64)) ** 2).sum(1)
    noise = np.random.default_rng(folds)
    grey = 1 - radius
    for middle in noise.uniform((-50, -65, -45), (50, 65, 45), (12, 3)):
        grey += 0.2 * noise.choice([-1, 1]) * np.exp(-(((places - middle) / 18) ** 2).sum(1) / 2)
    return np.where(radius < 1, grey, np.nan).reshape(shape).astype(np.float32)


@pytest.mark.parametrize("folds", [0, 2, 5, 8])
def test_a_persons_own_folds_are_no_tilt(folds):
    """Turned by 26 to 40 degrees they are a little more like healthy ones, by chance."""
    healthy = mean_blocks([person(100 + other) for other in range(12)])
    found = compare(person(folds), healthy, EDGES)
    assert found.tilted is None
    assert found.doubts("the healthy t1 volumes") == []


def test_angles_are_said_in_words_of_the_head():
    """In a straight head the nose is at +y, the top at +z and its right at +x."""
    nose, top = np.array([0, 1, 0]), np.array([0, 0, 1])
    assert (Tilt(pitch=20).matrix @ nose)[2] > 0, "nose up"
    assert (Tilt(roll=20).matrix @ top)[0] > 0, "top to the right"
    assert (Tilt(yaw=20).matrix @ nose)[0] < 0, "nose to the left"
    assert str(Tilt(12, -6, 0.4)) == "12 nose up, 6 to its left shoulder"
    assert str(Tilt(-12, 6, -3)) == "12 nose down, 6 to its right shoulder, 3 nose to its right"


def test_a_tilted_head_is_doubted_and_one_as_tilted_as_the_healthy_ones_is_not():
    turned = head(Tilt(pitch=-18))
    (doubt,) = compare(turned, head(), EDGES).doubts("the healthy t1 volumes")
    assert doubt.startswith("its head is tilted in its grid by 18 degrees against the healthy t1 volumes (18 nose down")
    assert compare(turned, turned, EDGES).doubts("the healthy t1 volumes") == []
    assert compare(head(Tilt(pitch=8)), head(), EDGES).doubts("the healthy t1 volumes") == []


def test_another_contrast_has_no_tilt():
    found = compare(-head(), head(), EDGES)
    assert found.tilt is None
    assert "another contrast" in found.doubts("the healthy t1 volumes")[0]


def test_blocks_that_are_too_large_or_too_few_say_nothing():
    assert find_tilt(head(), head(), (6.0, 32.0, 32.0)) is None
    few = head()
    few[:, :14] = np.nan
    few[:16] = np.nan
    assert find_tilt(few, head(), EDGES) is None


@pytest.mark.parametrize("angle", [0.0, -18.0])
def test_a_tilt_neither_hides_a_turn_nor_looks_like_one(angle):
    tilted = head(Tilt(pitch=angle))
    assert compare(tilted, head(), EDGES).turn is None
    assert compare(tilted[:, ::-1], head(), EDGES).turn == "back to front"
    assert compare(tilted[::-1], head(), EDGES).turn == "upside down"
