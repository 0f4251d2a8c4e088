"""A subject: its lesion, mass effect, field of view and seed, on a small head."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from heads import small_template
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ssn.train import subject
from ssn.train.lesions import Lesion
from ssn.train.subject import draw_turn, make_subject


@pytest.fixture(scope="module")
def template():
    return small_template()


def pushing(*millimetres):
    """Stand in for `draw_lesion`: a lesion that is nothing but a push, the same everywhere."""

    def draw(kind, tissue, rng, seed):
        push = torch.tensor(millimetres).view(3, 1, 1, 1).expand(3, *tissue.brain.shape)
        return Lesion(kind, (), torch.zeros(tissue.brain.shape, dtype=torch.bool), push)

    return draw


def test_a_turn_is_by_the_angle_about_an_axis_of_its_own():
    turns = [Rotation.from_matrix(draw_turn(np.random.default_rng(seed), 20)) for seed in range(8)]
    np.testing.assert_allclose([np.rad2deg(turn.magnitude()) for turn in turns], 20)
    axes = np.array([turn.as_rotvec() for turn in turns])
    assert np.linalg.matrix_rank(axes) == 3
    assert axes.min() < 0 < axes.max()


def test_a_lesion_that_pushes_nothing_leaves_the_same_brain_and_acquisition(template, monkeypatch):
    well = make_subject(template, 2)
    monkeypatch.setattr(subject, "draw_lesion", pushing(0.0, 0.0, 0.0))
    np.testing.assert_allclose(make_subject(template, 2, lesion="tumour").image, well.image, atol=2e-3)


def test_mass_effect_moves_tissue_the_way_it_pushes_and_not_the_outline(template, monkeypatch):
    monkeypatch.setattr(subject, "CROPPED_SHARE", 0.0)
    well = make_subject(template, 3).image
    monkeypatch.setattr(subject, "draw_lesion", pushing(6.0, 0.0, -3.0))
    pushed = make_subject(template, 3, lesion="tumour").image
    assert np.array_equal(pushed > 0, well > 0), "the skull stays"
    inside = ndimage.binary_erosion(well > 0, iterations=3)

    def difference(*moved):
        there, here = (ndimage.gaussian_filter(image, 1.5) for image in (np.roll(well, moved, (0, 1, 2)), pushed))
        return np.abs(here - there)[inside].mean()

    others = [(0, 0, 0), (-6, 0, 3), (6, 0, 3), (0, 6, -3), (3, 0, -1)]
    assert difference(6, 0, -3) < 0.6 * min(difference(*other) for other in others)


def test_a_field_of_view_that_ends_in_the_brain_leaves_the_rest_and_the_lesion_where_they_were(template, monkeypatch):
    for seed in range(3):
        made = []
        for share in (0.0, 1.0):
            monkeypatch.setattr(subject, "CROPPED_SHARE", share)
            made.append(make_subject(template, seed, lesion="wmh"))
        whole, cropped = made
        gone = whole.image.shape[2] - cropped.image.shape[2]
        assert whole.image[:, :, gone - 1].any(), "in the brain"
        assert np.array_equal(cropped.image, whole.image[:, :, gone:])
        assert np.array_equal(cropped.mask, whole.mask[:, :, gone:])
        assert cropped.mask.sum() == whole.mask.sum() > 0, "no lesion is cut"
        np.testing.assert_allclose(cropped.affine @ [3, 4, 5, 1], whole.affine @ [3, 4, 5 + gone, 1])
    np.testing.assert_array_equal(whole.affine, template.affine)


def test_some_fields_of_view_end_in_the_brain_and_most_do_not(template):
    thin = {name: getattr(template, name)[::2, ::2, ::2] for name in ("t1", "grey", "white", "brain")}
    small = replace(template, **thin)
    heights = [make_subject(small, seed).image.shape[2] for seed in range(40)]
    assert 0 < sum(height < small.t1.shape[2] for height in heights) < 16


@pytest.mark.parametrize(
    ("seed", "options", "brain", "lesion", "voxels", "mean"),
    [
        (8, {"lesion": "stroke", "tilt_degrees": 10}, (33.7, 37.4, 29.8), (49.0, 27.3, 37.8), 1391, 0.649),
        (9, {"lesion": "tumour"}, (30.8, 39.7, 28.4), (37.8, 44.2, 29.8), 25344, 0.609),
        (8, {"contrast": "flair"}, (33.8, 37.1, 29.7), None, 0, 0.515),
    ],
)
def test_a_seed_makes_the_subject_that_it_has_always_made(template, seed, options, brain, lesion, voxels, mean):
    """A cohort that an older version began is gone on with, and what documents say of a cohort is said of a seed."""
    made = make_subject(template, seed, **options)
    np.testing.assert_allclose(np.argwhere(made.image > 0).mean(0), brain, atol=0.3)
    if lesion is not None:
        np.testing.assert_allclose(np.argwhere(made.mask).mean(0), lesion, atol=2)
    assert made.mask.sum() == pytest.approx(voxels, rel=0.02)
    assert made.image[made.image > 0].mean() == pytest.approx(mean, abs=2e-3)
