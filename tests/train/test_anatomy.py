"""What a healthy subject is made of, on a head small enough to look at all of it."""

import numpy as np
import pytest
import torch
from heads import small_template
from scipy import ndimage
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from ssn.train.anatomy import (
    Tissue,
    _integrate,
    acquire,
    draw_coordinates,
    draw_tissue,
    sample,
    tissue_signal,
    voxel_coordinates,
)

SHAPE = (34, 44, 28)


def coordinates(seed, turn=None):
    return draw_coordinates(SHAPE, np.random.default_rng(seed), seed, turn).numpy().astype(np.float64)


def linear(at):
    """The 3 x 3 matrix and the centre of the affine map that is nearest to coordinates."""
    middle = (np.array(SHAPE) - 1) / 2
    offsets = np.indices(SHAPE).reshape(3, -1) - middle[:, None]
    matrix = np.linalg.lstsq(offsets.T, at.reshape(3, -1).T, rcond=None)[0].T
    return matrix, at.reshape(3, -1).mean(1)


@pytest.fixture(scope="module")
def template():
    return small_template()


@pytest.fixture(scope="module")
def own_place(template):
    return voxel_coordinates(template.t1.shape)


@pytest.fixture(scope="module")
def tissue(template, own_place):
    return draw_tissue(template, own_place, np.random.default_rng(3), 3)


def test_a_sample_at_a_voxel_is_that_voxel_and_outside_is_nothing():
    volume = torch.from_numpy(np.random.default_rng(0).uniform(1, 2, (2, 4, 5, 6)).astype(np.float32))
    at = torch.tensor([[3.0, 1, 0, 9], [1, 4, 0, 1], [2, 2, 5, 1.5]]).view(3, 4, 1, 1)
    found = sample(volume, at)[:, :, 0, 0]
    expected = torch.stack([volume[:, 3, 1, 2], volume[:, 1, 4, 2], volume[:, 0, 0, 5], torch.zeros(2)], 1)
    torch.testing.assert_close(found, expected)
    between = sample(volume, torch.tensor([2.0, 1, 2.25]).view(3, 1, 1, 1))[:, 0, 0, 0]
    torch.testing.assert_close(between, 0.75 * volume[:, 2, 1, 2] + 0.25 * volume[:, 2, 1, 3])


def test_a_flow_is_followed_to_its_end_so_that_nothing_passes_anything_else():
    offsets = np.indices((25, 29, 21), np.float32) - np.array([12, 14, 10], np.float32).reshape(3, 1, 1, 1)
    rates = np.array([[-1.2, 0, 0], [0.3, -0.8, 0], [0, 0, -0.5]])
    moved = _integrate(torch.from_numpy(np.einsum("ij,jxyz->ixyz", rates, offsets).astype(np.float32)))
    expected = np.einsum("ij,jxyz->ixyz", expm(rates) - np.eye(3), offsets)
    np.testing.assert_allclose(moved, expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("seed", range(3))
def test_a_head_is_deformed_by_millimetres_and_its_tissue_never_folds(seed):
    at = coordinates(seed)
    matrix, centre = linear(at)
    offsets = np.indices(SHAPE).reshape(3, -1) - (np.array(SHAPE)[:, None] - 1) / 2
    moved = at.reshape(3, -1) - matrix @ offsets - centre[:, None]
    assert 0.5 < np.sqrt((moved**2).mean()) < 5
    inner = at[:, 5:-5, 5:-5, 5:-5]
    jacobian = np.stack([np.stack(np.gradient(axis)) for axis in inner], -1)
    assert np.linalg.det(np.moveaxis(jacobian, 0, -2)).min() > 0


def test_people_are_on_average_smaller_than_the_template_and_hold_their_heads_nearly_straight():
    matrices, centres = zip(*(linear(coordinates(seed)) for seed in range(24)), strict=True)
    assert 1.05 < np.mean([np.linalg.det(matrix) for matrix in matrices]) < 1.4, "more of the template in each mm"
    angles = [Rotation.from_matrix(matrix / np.cbrt(np.linalg.det(matrix))).magnitude() for matrix in matrices]
    assert 2 < np.rad2deg(np.mean(angles)) < 12
    np.testing.assert_allclose(np.mean(centres, 0), (np.array(SHAPE) - 1) / 2, atol=2)


def test_a_turn_is_by_its_angle_and_about_the_middle_of_the_grid():
    turn = Rotation.from_euler("xyz", (10, -25, 40), degrees=True).as_matrix()
    (straight, centre), (turned, same) = linear(coordinates(1)), linear(coordinates(1, turn))
    between = turned @ np.linalg.inv(straight)  # the turn, as the head's own pose and size see it
    np.testing.assert_allclose([np.trace(between), np.linalg.det(between)], [np.trace(turn), 1], atol=1e-5)
    np.testing.assert_allclose(same, centre, atol=5)


def test_tissue_fills_the_brain_and_nothing_else_and_lies_where_the_template_has_it(template, tissue):
    total = tissue.fractions.sum(0)
    torch.testing.assert_close(total, tissue.brain.float())
    for fraction, part in zip(tissue.fractions[1:], (template.grey, template.white), strict=True):
        assert fraction[torch.from_numpy(part) > 0.9].mean() > 0.75
    ventricle = template.brain & (template.grey + template.white < 0.1)
    assert tissue.fractions[0][torch.from_numpy(ventricle)].mean() > 0.75
    assert not tissue.texture[~tissue.brain].any()


def test_over_the_brain_there_is_fluid_and_beyond_the_template_nothing(template, own_place):
    over = 0
    for seed in range(6):
        found = draw_tissue(template, own_place, np.random.default_rng(seed), seed)
        outer = found.brain & ~torch.from_numpy(template.brain)
        over += int(outer.sum())
        assert not outer.any() or found.fractions[0][outer].mean() > 0.7
    assert over > 1000
    away = own_place + torch.tensor([0.0, 60, 0]).view(3, 1, 1, 1)
    far = draw_tissue(template, away, np.random.default_rng(3), 3)
    assert not far.brain[:, 15:].any()


def test_an_outline_that_is_given_is_kept(template, own_place):
    outline = torch.zeros(template.t1.shape, dtype=torch.bool)
    outline[10:50, 12:60, 9:40] = True
    found = draw_tissue(template, own_place, np.random.default_rng(3), 3, outline)
    assert torch.equal(found.brain, outline)
    torch.testing.assert_close(found.fractions.sum(0), outline.float())


@pytest.mark.parametrize(("contrast", "darkest_first"), [("t1", (0, 1, 2)), ("t2", (2, 1, 0)), ("flair", (0, 2, 1))])
def test_each_contrast_ranks_fluid_grey_and_white_matter_in_its_own_way(contrast, darkest_first):
    fractions = torch.eye(3).view(3, 3, 1, 1)
    brain = torch.ones(3, 1, 1, dtype=torch.bool)
    found = Tissue(fractions, torch.zeros(3, 1, 1), brain)
    people = [tissue_signal(found, contrast, np.random.default_rng(seed)).flatten() for seed in range(20)]
    assert tuple(torch.stack(people).mean(0).argsort().tolist()) == darkest_first
    assert torch.stack(people).std(0).min() > 0.01, "no two alike"


def test_an_acquisition_is_its_seed_s_and_keeps_the_background_empty(tissue):
    signal = tissue_signal(tissue, "t1", np.random.default_rng(1))

    def image(seed, level=signal):
        return acquire(level, tissue.brain, np.random.default_rng(seed), seed)

    one, again, other = (image(seed) for seed in (5, 5, 6))
    assert np.array_equal(one, again)
    inside = tissue.brain.numpy()
    assert not one[~inside].any()
    assert (one[inside] > 0).all()
    noise = image(5, 0.5 * signal)[inside] - 0.5 * one[inside]
    assert 0.002 < noise.std() < 0.03, "a scanner's noise does not shrink with the signal"
    deep = ndimage.binary_erosion(inside, iterations=8)
    assert ndimage.gaussian_filter(one - other, 5)[deep].std() > 0.004, "each has a bias field of its own"
    assert np.corrcoef(one[inside], signal.numpy()[inside])[0, 1] > 0.9
