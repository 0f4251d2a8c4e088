"""The metrics against their definitions, spelt out slowly, and against cases known by hand."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssn.core.metrics import (
    PRO_LIMIT,
    best_dice_threshold,
    dice,
    voxel_accuracy,
    voxel_auprc,
    voxel_auroc,
)
from ssn.core.slice_metrics import slice_auprc, slice_auroc, slice_scores


def two_lesions():
    """A (6, 6, 6) mask with a lesion of 8 voxels and one of a single voxel."""
    mask = np.zeros((6, 6, 6), dtype=bool)
    mask[:2, :2, :2] = True
    mask[4, 4, 4] = True
    return mask, np.ones_like(mask)


def components_by_flood_fill(mask):
    """26-connected components, a set of voxels each."""
    left = {tuple(voxel) for voxel in np.argwhere(mask)}
    regions = []
    while left:
        region, front = set(), [left.pop()]
        while front:
            voxel = front.pop()
            region.add(voxel)
            near = {other for other in left if max(abs(a - b) for a, b in zip(voxel, other, strict=True)) <= 1}
            left -= near
            front.extend(near)
        regions.append(region)
    return regions


def pro(score, mask, within):
    return voxel_accuracy(score, mask, within).pro


def pro_by_definition(score, mask, within):
    """One threshold at a time, one region at a time; the area as an integral of the drawn line."""
    regions = [[voxel for voxel in region if within[voxel]] for region in components_by_flood_fill(mask)]
    regions = [region for region in regions if region]
    healthy = within & ~mask
    points = [(0.0, 0.0)]
    for threshold in sorted({float(value) for value in score[within]}, reverse=True):
        predicted = score >= threshold
        overlap = np.mean([np.mean([predicted[voxel] for voxel in region]) for region in regions])
        points.append((predicted[healthy].mean(), overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 > x0 and x0 < PRO_LIMIT:
            end = min(x1, PRO_LIMIT)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / PRO_LIMIT


def test_importing_the_metrics_needs_numpy_alone():
    heavy = "('sklearn', 'scipy', 'torch')"
    code = f"import sys, ssn.core.metrics; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**16), levels=st.sampled_from([2, 9, 10**6]))
def test_one_sort_gives_the_numbers_of_scikit_learn(seed, levels):
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(seed)
    score = rng.integers(0, levels, (5, 6, 7)).astype(np.float32)
    mask, within = rng.random((5, 6, 7)) < 0.2, rng.random((5, 6, 7)) < 0.8
    mask[0, 0, 0], within[0, 0, :2], mask[0, 0, 1] = True, True, False
    found = voxel_accuracy(score, mask, within)
    assert found.auroc == pytest.approx(roc_auc_score(mask[within], score[within]), abs=1e-12)
    assert found.auprc == pytest.approx(average_precision_score(mask[within], score[within]), abs=1e-12)
    assert found[:2] == (voxel_auroc(score, mask, within), voxel_auprc(score, mask, within))


def test_voxel_auroc_is_the_share_of_pairs_in_right_order():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 9, (4, 4, 4)).astype(np.float32)
    mask, within = rng.random((4, 4, 4)) < 0.3, rng.random((4, 4, 4)) < 0.8
    lesion, healthy = score[mask & within][:, None], score[~mask & within][None]
    expected = np.mean((lesion > healthy) + 0.5 * (lesion == healthy))
    assert voxel_auroc(score, mask, within) == pytest.approx(expected)


def test_voxel_auprc_is_precision_summed_over_steps_of_recall():
    score = np.array([0.9, 0.8, 0.7, 0.6])
    mask = np.array([1, 0, 1, 0])
    assert voxel_auprc(score, mask, np.ones(4, bool)) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@pytest.mark.parametrize("metric", [voxel_auroc, voxel_auprc, pro])
def test_voxels_outside_the_brain_do_not_count(metric):
    mask, within = two_lesions()
    score = np.random.default_rng(1).random(mask.shape)
    within[:, :, 5] = False
    elsewhere = np.where(within, score, np.nan)
    assert metric(elsewhere, mask, within) == metric(score, mask, within)


@pytest.mark.parametrize("metric", [voxel_auroc, voxel_auprc, pro])
def test_undefined_metrics_say_why(metric):
    mask, within = two_lesions()
    score = np.zeros(mask.shape)
    with pytest.raises(ValueError, match="nothing within the brain is labelled"):
        metric(score, np.zeros_like(mask), within)
    with pytest.raises(ValueError, match="nothing within the brain is labelled"):
        metric(score, mask, within & ~mask)
    with pytest.raises(ValueError, match="everything within the brain is labelled"):
        metric(score, mask, mask)
    with pytest.raises(ValueError, match="NaN or infinite"):
        metric(np.full(mask.shape, np.nan), mask, within)
    with pytest.raises(ValueError, match="one shape"):
        metric(score[:3], mask, within)


def test_dice_of_known_overlaps():
    mask, _ = two_lesions()
    assert dice(mask, mask) == 1
    assert dice(~mask, mask) == 0
    assert dice(np.array([1, 1, 1, 0]), np.array([0, 1, 1, 1])) == pytest.approx(2 / 3)


def test_dice_of_two_empty_masks_is_an_error():
    with pytest.raises(ValueError, match="undefined"):
        dice(np.zeros(3), np.zeros(3))


@pytest.mark.parametrize("seed", range(8))
def test_best_dice_threshold_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    masks = [rng.random(size) < share for size, share in ((80, 0.2), (300, 0.1))]
    scores = [(rng.normal(size=mask.size) + mask).astype(np.float32) for mask in masks]

    def mean_dice(threshold):
        return np.mean([dice(s >= threshold, m) for s, m in zip(scores, masks, strict=True)])

    best = max(mean_dice(threshold) for threshold in np.concatenate(scores))
    assert mean_dice(best_dice_threshold(scores, masks)) == pytest.approx(best)


def test_best_dice_threshold_of_separable_volumes_separates_them():
    scores = [np.array([0.1, 0.2, 5.0, 6.0]), np.array([[1.0, 7.0]])]
    masks = [np.array([0, 0, 1, 1]), np.array([[0, 1]])]
    assert best_dice_threshold(scores, masks) == 5.0


def test_best_dice_threshold_refuses_volumes_it_cannot_learn_from():
    with pytest.raises(ValueError, match="volume 1 has no lesion"):
        best_dice_threshold([np.arange(3)] * 2, [np.array([0, 0, 1]), np.zeros(3)])
    with pytest.raises(ValueError, match="at least one"):
        best_dice_threshold([], [])
    with pytest.raises(ValueError, match="NaN or infinite"):
        best_dice_threshold([np.array([0, np.nan, 1])], [np.array([0, 0, 1])])


def test_pro_of_a_perfect_map_is_one():
    mask, within = two_lesions()
    assert pro(mask.astype(np.float32), mask, within) == pytest.approx(1)


def test_pro_of_an_inverted_map_is_zero():
    mask, within = two_lesions()
    assert pro(-mask.astype(np.float32), mask, within) == 0


def test_pro_of_a_constant_map_is_half_its_limit():
    mask, within = two_lesions()
    assert pro(np.zeros(mask.shape), mask, within) == pytest.approx(0.3 / 2)


def test_pro_counts_a_small_lesion_as_much_as_a_large_one():
    mask, within = two_lesions()
    score = np.zeros(mask.shape)
    score[:2, :2, :2] = 1  # the lesion of 8 voxels is found, that of 1 is not
    # From (0, 1/2) the line runs straight to (1, 1).
    assert pro(score, mask, within) == pytest.approx(0.5 + 0.3 / 4)


def test_pro_takes_lesions_that_touch_at_a_corner_as_one():
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    score = np.zeros(mask.shape)
    score[0, 0, 0] = 1
    assert pro(score, mask, np.ones_like(mask)) == pytest.approx(1 / 3 + 2 / 3 * 0.3 / 2)


def test_pro_does_not_split_a_lesion_where_the_brain_mask_has_a_hole():
    mask = np.zeros((7, 3, 3), dtype=bool)
    mask[:5, 1, 1] = True
    within = np.ones_like(mask)
    within[3, 1, 1] = False  # leaves 3 voxels on one side and 1 on the other, still one region of 4
    score = np.zeros(mask.shape)
    score[4, 1, 1] = 1
    assert pro(score, mask, within) == pytest.approx(0.25 + 0.75 * 0.3 / 2)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([2, 5, 1000]))
def test_pro_agrees_with_its_definition(seed, levels):
    rng = np.random.default_rng(seed)
    shape = (3, 4, 5)
    score = rng.integers(0, levels, shape) / levels
    mask, within = rng.random(shape) < 0.15, rng.random(shape) < 0.8
    mask[0, 0, 0] = within[0, 0, 0] = within[2, 2, 2] = True
    mask[2, 2, 2] = False
    assert pro(score, mask, within) == pytest.approx(pro_by_definition(score, mask, within))


def test_slice_score_is_the_highest_in_the_slice_and_brain():
    rng = np.random.default_rng(4)
    score, within = rng.normal(size=(3, 4, 5)).astype(np.float32), rng.random((3, 4, 5)) < 0.5
    within[:, :, 1] = False
    got = slice_scores(score, within)
    slices = zip(np.moveaxis(score, 2, 0), np.moveaxis(within, 2, 0), strict=True)
    expected = [max(part[inside], default=-np.inf) for part, inside in slices]
    assert got.tolist() == expected
    assert got[1] == -np.inf
    assert got.dtype == np.float32


def test_slice_metrics_leave_out_slices_without_brain():
    scores, labels = np.array([-np.inf, 0.1, 0.4, 0.3, -np.inf]), np.array([0, 0, 0, 1, 0])
    assert slice_auroc(scores, labels) == pytest.approx(0.5)
    assert slice_auprc(scores, labels) == pytest.approx(0.5)


@pytest.mark.parametrize("metric", [slice_auroc, slice_auprc])
def test_undefined_slice_metrics_say_why(metric):
    with pytest.raises(ValueError, match="nothing"):
        metric(np.arange(3.0), np.zeros(3))
    with pytest.raises(ValueError, match="no voxel within the brain"):
        metric(np.array([-np.inf, 1.0, 2.0]), np.array([1, 0, 1]))
    with pytest.raises(ValueError, match="NaN"):
        metric(np.array([np.nan, 1.0]), np.array([0, 1]))
