from dataclasses import replace

import numpy as np
import pytest
from brains import brain_array, save
from scipy.ndimage import gaussian_filter

from ssn.core.calibrate import (
    FOLDS,
    NEIGHBOURHOOD,
    PRIOR_WEIGHT,
    HealthyVolume,
    brain_statistics,
    calibrate,
    place_statistics,
    with_threshold_of,
)
from ssn.core.errors import DataError
from ssn.core.geometry import GridConfig, gaussian_matrix
from ssn.core.likeness import block_edges, compare, grey_blocks, mean_blocks
from ssn.core.look import Look
from ssn.core.scoring import Calibration, anomaly_map, volume_score
from ssn.core.slices import cut_slices
from ssn.core.straight import straighten
from ssn.core.tilt import Tilt
from ssn.core.volume import read_volume

SHAPE = (12, 10, 14)


def healthy_answers(volumes, rng):
    """Log-likelihoods whose mean and spread differ from place to place, over a part of the grid each."""
    mean, deviation = rng.normal(-1.5, 0.3, SHAPE).ravel(), rng.uniform(0.1, 0.4, SHAPE).ravel()
    for _ in range(volumes):
        places = np.flatnonzero(rng.random(mean.size) < 0.8)
        yield places, (mean[places] + deviation[places] * rng.normal(size=places.size)).astype(np.float32)


def scipy_statistics(answers):
    sums = np.zeros((3, np.prod(SHAPE)))
    for places, values in answers:
        sums[:, places] += np.stack([np.ones(places.size), values, values.astype(np.float64) ** 2])
    pooled = np.concatenate([values for _, values in answers]).astype(np.float64)
    count, total, square = (gaussian_filter(s.reshape(SHAPE), NEIGHBOURHOOD, mode="constant") for s in sums)
    mean = (total + PRIOR_WEIGHT * pooled.mean()) / (count + PRIOR_WEIGHT)
    second = (square + PRIOR_WEIGHT * (pooled**2).mean()) / (count + PRIOR_WEIGHT)
    return mean, np.sqrt(second - mean**2)


def test_statistics_of_a_place_are_those_of_scipys_gaussian():
    answers = list(healthy_answers(7, np.random.default_rng(0)))
    for given, expected in zip(place_statistics(answers, SHAPE), scipy_statistics(answers), strict=True):
        np.testing.assert_allclose(given, expected, atol=1e-5)


def test_statistics_of_the_whole_brain_are_those_of_all_values_together():
    answers = list(healthy_answers(3, np.random.default_rng(1)))
    together = np.concatenate([values for _, values in answers])
    for given, expected in zip(brain_statistics(answers, SHAPE), (together.mean(), together.std()), strict=True):
        np.testing.assert_allclose(given, np.full(SHAPE, expected), rtol=1e-5)


@pytest.mark.parametrize("size", [3, 20])
def test_a_gaussian_with_zero_borders_is_scipys_constant(size):
    expected = gaussian_filter(np.eye(size), (1.7, 0), mode="constant")
    np.testing.assert_allclose(gaussian_matrix(size, 1.7, border="zero"), expected, atol=1e-12)


def test_healthy_maps_have_mean_0_and_deviation_1_and_the_wanted_share_above_the_threshold(tmp_path):
    """Also for volumes that calibration has not seen, and whatever the log-likelihood's own scale."""
    grid, cells, rng = GridConfig(), 12, np.random.default_rng(2)
    shape = (grid.windows, cells, cells)
    mean, deviation = rng.normal(-40, 9, shape).ravel(), rng.uniform(1, 2, shape).ravel()
    volume = read_volume(save(tmp_path / "scan.nii", *brain_array((4, 4, 4), lesion=False)))
    stack = cut_slices(volume, grid, cells)
    places = stack.occupied_places(0.5)

    def answer():
        return (mean[places] + deviation[places] * rng.normal(size=places.size)).astype(np.float32)

    seen = (HealthyVolume.of(volume, Look.as_it_lies(stack), places, answer()) for _ in range(30))
    calibration = calibrate(seen, windows=grid.windows, cells=cells, sigma=3.0, rate=0.01)
    unseen = np.stack([anomaly_map(answer(), places, stack, calibration)[stack.brain] for _ in range(10)])
    assert abs(unseen.mean()) < 0.1
    assert unseen.std() == pytest.approx(1, abs=0.1)
    assert (unseen > calibration.threshold).mean() == pytest.approx(0.01, abs=0.004)
    assert calibration.healthy_scores.size == 30
    assert calibration.voxel_mm == pytest.approx(4)
    assert compare(grey_blocks(stack), calibration.grey, block_edges(grid, cells)).value == pytest.approx(1)
    assert (np.diff(calibration.healthy_scores) >= 0).all()


def test_a_volume_is_measured_by_those_of_the_other_folds_alone(tmp_path):
    grid, cells, rng = GridConfig(), 12, np.random.default_rng(5)
    volumes = [
        read_volume(save(tmp_path / f"{zooms[2]}.nii", *brain_array(zooms, lesion=False)))
        for zooms in ((4.0, 4.0, 4.0), (4.0, 4.0, 4.5), (4.0, 4.0, 9.0))
    ]
    looks = [Look.as_it_lies(cut_slices(volume, grid, cells)) for volume in volumes]
    seen = []
    for index in range(FOLDS + 2):
        volume, look = volumes[index % 3], looks[index % 3]
        places = look.stack.occupied_places(0.5)
        values = (index**2 + rng.normal(size=places.size)).astype(np.float32)
        seen.append(HealthyVolume.of(volume, look, places, values))

    def levels(answers, shape):
        return np.full(shape, sum(values.mean() for _, values in answers), np.float32), np.full(shape, 2, np.float32)

    found = calibrate(seen, windows=grid.windows, cells=cells, sigma=3.0, rate=0.01, statistics=levels)
    inside, scores = [], []
    for index, one in enumerate(seen):
        others = [(o.places, o.log_likelihood) for other, o in enumerate(seen) if other % FOLDS != index % FOLDS]
        mean, deviation = levels(others, found.mean.shape)
        score_map = one.look.score_map(
            one.log_likelihood, one.places, replace(found, mean=mean, deviation=deviation, gain=1.0)
        )
        brain = one.look.read.brain
        inside.append(score_map[brain])
        scores.append(volume_score(score_map, brain, one.voxel_ml))
    assert found.gain == pytest.approx(1 / np.concatenate(inside).std(), rel=1e-4)
    np.testing.assert_allclose(found.healthy_scores, np.sort(scores) * found.gain, rtol=1e-4)
    np.testing.assert_array_equal(found.mean, levels([(o.places, o.log_likelihood) for o in seen], found.mean.shape)[0])
    assert found.voxel_mm == 4.5, "the median of the longest edges"
    np.testing.assert_array_equal(found.grey, mean_blocks([one.grey for one in seen]))


def test_voxels_beyond_any_scale_count_and_too_many_of_them_are_refused(tmp_path):
    grid, cells = GridConfig(), 12
    volume = read_volume(save(tmp_path / "scan.nii", *brain_array((4, 4, 4), lesion=False)))
    stack = cut_slices(volume, grid, cells)
    places = stack.occupied_places(0.5)

    def standard(answers, shape):
        return np.zeros(shape, np.float32), np.ones(shape, np.float32)

    def level(far):
        """Threshold before the map is scaled, of ten volumes, one of which is far off in its last `far` places."""
        answers = np.random.default_rng(3).normal(0, 1, (10, places.size)).astype(np.float32)
        answers[3, places.size - far :] -= 1e5
        seen = [HealthyVolume.of(volume, Look.as_it_lies(stack), places, values) for values in answers]
        found = calibrate(seen, windows=grid.windows, cells=cells, sigma=1.0, rate=0.01, statistics=standard)
        return found.threshold / found.gain

    assert level(places.size // 50) > level(0) + 0.02, "0.2 % are far above, so 0.8 % of the others may be"
    with pytest.raises(DataError, match="are no healthy brains of this kind"):
        level(places.size // 2)


def test_a_healthy_volume_keeps_no_slices(tmp_path):
    volume = read_volume(save(tmp_path / "scan.nii", *brain_array((6, 6, 6))))
    stack = cut_slices(volume, GridConfig(), 12)
    kept = HealthyVolume.of(volume, Look.as_it_lies(stack), np.arange(3), np.zeros(3, np.float32))
    for seen in (kept.look.read, kept.look.stack):
        assert seen.slices.size == 0
        assert seen.slices.base is None, "a view would keep the whole"


def test_a_healthy_volume_that_was_straightened_is_calibrated_on_straight_and_mapped_as_it_lies(tmp_path):
    tilt = Tilt(pitch=15)
    volume = read_volume(save(tmp_path / "scan.nii", *brain_array((2.0, 2.0, 2.0), lesion=False, turn=tilt.matrix)))
    grid, cells = GridConfig(), 12
    read = cut_slices(volume, grid, cells)
    straight, turn = straighten(volume, read, tilt)
    look = Look(read, cut_slices(straight, grid, cells), turn=turn)
    places = look.stack.occupied_places(0.5)
    answers = np.random.default_rng(0).normal(size=(6, places.size)).astype(np.float32)
    seen = [HealthyVolume.of(volume, look, places, values) for values in answers]
    calibration = calibrate(seen, windows=grid.windows, cells=cells, sigma=3.0, rate=0.01)
    np.testing.assert_allclose(calibration.grey, grey_blocks(look.stack), rtol=1e-5)
    assert calibration.voxel_mm == 2.0, "of the volume that was read"
    score_map = look.score_map(answers[0], places, calibration)
    assert score_map.shape == volume.data.shape
    assert score_map[read.brain].std() == pytest.approx(1, abs=0.15)


def test_the_threshold_for_a_new_head_is_that_of_heads_that_training_did_not_see():
    rng = np.random.default_rng(5)
    own = Calibration(np.zeros(SHAPE), np.ones(SHAPE), 1.5, 3.0, 4.9, 0.01, np.arange(4, dtype=np.float32), 2.0)
    maps = [(rng.normal(1, spread, 40_000).astype(np.float32), score) for spread, score in ((2, 9.0), (3, 7.0))]
    found = with_threshold_of(own, iter(maps))
    assert found.threshold == pytest.approx(np.quantile(np.concatenate([inside for inside, _ in maps]), 0.99), abs=0.01)
    assert found.healthy_scores.tolist() == [7, 9]
    assert replace(found, threshold=4.9, healthy_scores=own.healthy_scores) == own, "z-scores stay what they were"


def test_heads_that_are_all_above_the_map_give_no_threshold():
    own = Calibration(np.zeros(SHAPE), np.ones(SHAPE), 1.5, 3.0, 4.9, 0.01, np.arange(4, dtype=np.float32))
    with pytest.raises(DataError, match="no healthy brains of this kind"):
        with_threshold_of(own, [(np.full(9, 200, np.float32), 200.0)])
