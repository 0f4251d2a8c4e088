"""The numbers that a volume gets: its map, score and p-value, and what healthy volumes are held against."""

from dataclasses import replace

import numpy as np
import pytest
from brains import brain_array, save

from ssn.core.calibrate import FOLDS, HealthyVolume, brain_statistics, calibrate
from ssn.core.geometry import GridConfig
from ssn.core.look import Look
from ssn.core.scoring import Calibration, anomaly_map, p_value, parity_map, smooth_map, volume_score
from ssn.core.slices import cut_slices
from ssn.core.volume import read_volume

GRID, CELLS = GridConfig(), 12
SHAPE = (GRID.windows, CELLS, CELLS)


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    return read_volume(save(tmp_path_factory.mktemp("scan") / "scan.nii", *brain_array((6, 6, 5), lesion=False)))


@pytest.fixture(scope="module")
def stack(volume):
    return cut_slices(volume, GRID, CELLS)


@pytest.mark.parametrize(("score", "expected"), [(0.5, 1), (1, 1), (3, 0.6), (3.5, 0.4), (4, 0.4), (4.5, 0.2)])
def test_a_p_value_is_the_share_of_those_that_score_as_high_itself_counted_in(score, expected):
    assert p_value(score, np.array([1, 2, 3, 4], np.float32)) == pytest.approx(expected)


@pytest.mark.parametrize(("voxel_ml", "count"), [(0.001, 1000), (0.3, 3), (0.5, 2), (1.0, 1), (2.5, 1), (0.0001, 5832)])
def test_a_volume_s_score_is_the_mean_of_its_highest_millilitre_of_brain(voxel_ml, count):
    brain = np.zeros((20, 20, 20), bool)
    brain[1:-1, 1:-1, 1:-1] = True
    score_map = np.random.default_rng(0).normal(size=brain.shape).astype(np.float32)
    score_map[~brain] = 99
    assert volume_score(score_map, brain, voxel_ml) == pytest.approx(
        np.sort(score_map[brain])[-count:].mean(), abs=1e-5
    )


def test_what_is_less_likely_than_in_healthy_volumes_is_high(stack):
    """In standard deviations of its own place, times the gain."""
    rng = np.random.default_rng(1)
    mean, deviation = rng.normal(-1.5, 0.3, SHAPE), rng.uniform(0.1, 0.4, SHAPE)
    tables = (mean.astype(np.float32), deviation.astype(np.float32))
    calibration = Calibration(*tables, 1.5, 3.0, 2.0, 0.01, np.arange(3, dtype=np.float32))
    places = stack.occupied_places(0.5)
    values = (mean - 4 * deviation).ravel()[places].astype(np.float32)
    score_map = anomaly_map(values, places, stack, calibration)
    reached = stack.brain & (score_map != 0)
    np.testing.assert_allclose(score_map[reached], 6, rtol=1e-4)
    assert reached.sum() > 0.9 * stack.brain.sum()


def test_brain_that_no_computed_cell_reaches_has_no_score(stack):
    places = stack.occupied_places(0.5)
    here = places[places // CELLS**2 < 40]
    found = smooth_map(np.ones(here.size, np.float32), here, stack, 3.0)
    z = stack.placement.axes[2]
    above = z.scale * np.arange(z.native) + z.offset - (40 * GRID.window - 0.5)  # mm, of the highest cells' upper faces
    inside = stack.brain & (np.abs(above) < 20)
    np.testing.assert_allclose(found[inside & (above < 0) & (found != 0)], 1, atol=1e-5)
    assert found[inside & (above < 0)].mean() > 0.9
    assert not found[:, :, above > 8].any(), "the Gaussian of 3 mm hardly reaches so far"
    assert (inside & (above > 8)).any()


def test_the_published_map_is_highest_where_it_is_least_likely():
    values = np.full((8, 6, 6), -1.0, np.float32)
    values[2, 4, 1] = -3
    result = parity_map(values, (24, 48, 48), 1.0)
    at = np.unravel_index(result.argmax(), result.shape)
    assert [int(place // step) for place, step in zip(at, (3, 8, 8), strict=True)] == [2, 4, 1]


def test_the_statistics_of_a_whole_brain_are_one_mean_and_one_deviation():
    values = [np.random.default_rng(seed).normal(-2, 3, 50).astype(np.float32) for seed in range(4)]
    mean, deviation = brain_statistics([(np.arange(50), each) for each in values], (2, 5, 5))
    np.testing.assert_allclose(mean, np.full((2, 5, 5), np.mean(values)), rtol=1e-5)
    np.testing.assert_allclose(deviation, np.full((2, 5, 5), np.std(values)), rtol=1e-5)


@pytest.fixture
def healthy(volume, stack):
    """Seven volumes, whose log-likelihoods have another mean and deviation than a standard normal's."""
    places = stack.occupied_places(0.5)
    answers = np.random.default_rng(3).normal(-0.7, 0.4, (7, places.size)).astype(np.float32)
    return [HealthyVolume.of(volume, Look.as_it_lies(stack), places, each) for each in answers]


def standard(given):
    """Statistics that are the same whatever they are taken of, which `given` gets."""

    def statistics(answers, shape):
        given.append([id(values) for _, values in answers])
        return np.zeros(shape, np.float32), np.ones(shape, np.float32)

    return statistics


def calibrated(healthy, statistics):
    return calibrate(healthy, windows=GRID.windows, cells=CELLS, sigma=3.0, rate=0.01, statistics=statistics)


@pytest.mark.parametrize("count", [7, 3, 1])
def test_no_volume_is_compared_with_itself_but_where_there_is_no_other(healthy, count):
    given = []
    calibrated(healthy[:count], standard(given))
    everyone = [id(one.log_likelihood) for one in healthy[:count]]
    without = [
        [one for index, one in enumerate(everyone) if index % FOLDS != fold] for fold in range(min(FOLDS, count))
    ]
    assert given == [everyone, *(others or everyone for others in without)]


def test_healthy_maps_and_scores_are_of_one_scale(healthy, stack, volume):
    calibration = calibrated(healthy, standard([]))
    maps = [anomaly_map(one.log_likelihood, one.places, stack, calibration) for one in healthy]
    assert np.std([each[stack.brain] for each in maps]) == pytest.approx(1, rel=1e-4)
    scores = sorted(volume_score(each, stack.brain, volume.voxel_ml) for each in maps)
    np.testing.assert_allclose(calibration.healthy_scores, scores, rtol=1e-4)


def test_the_voxel_size_on_record_is_the_median_of_the_longest_edges(healthy):
    zooms = [(1.0, 1.0, 1.0), (1.0, 4.0, 1.0), (2.0, 1.0, 1.0)]
    told = [replace(one, zooms=edges) for one, edges in zip(healthy, zooms, strict=False)]
    assert calibrated(told, standard([])).voxel_mm == 2
