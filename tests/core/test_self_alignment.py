"""A volume of another scanner, with a lesion in it, aligned by itself."""

import numpy as np
import pytest

from ssn.core.alignment import Whitening
from ssn.core.scoring import Calibration
from ssn.core.self_alignment import EVERY, align_to_itself

CHANNELS, PLACES, LESION = 6, 40_000, slice(9_000, 11_800)  # 7 %
SHAPE = (1, 200, 200)


@pytest.fixture(scope="module")
def whitening():
    rng = np.random.default_rng(0)
    weight = np.linalg.inv(rng.normal(size=(CHANNELS, CHANNELS)) + 2 * np.eye(CHANNELS)).astype(np.float32)
    return Whitening(weight, -weight @ np.full(CHANNELS, 3, np.float32))


@pytest.fixture(scope="module")
def scan(whitening):
    """Features (L, C) of healthy brain as another scanner shows it, and of a lesion that lies far off."""
    rng = np.random.default_rng(1)
    known = rng.normal(size=(PLACES, CHANNELS))
    known[LESION] += 6
    turned = known @ (np.eye(CHANNELS) + 0.2 * rng.normal(size=(CHANNELS, CHANNELS))) + 0.5
    return ((turned - whitening.bias) @ np.linalg.inv(whitening.weight).T).astype(np.float32)


class Flow:
    """A normal distribution over whitened features, and what it was asked."""

    def __init__(self, whitening):
        self.whitening, self.asked = whitening, []

    def __call__(self, features, places):
        self.asked.append((features, places))
        return -0.5 * np.square(whitened(features, self.whitening)).mean(1)


def whitened(features, whitening):
    return features @ whitening.weight.T + whitening.bias


def calibration(mean=-0.5):
    table = np.ones(SHAPE, np.float32)
    return Calibration(mean * table, 0.3 * table, 1.0, 3.0, 5.0, 0.005, np.zeros(1, np.float32))


@pytest.fixture
def aligned(scan, whitening):
    def run(**given):
        features, flow = scan.copy(), Flow(whitening)
        align_to_itself(features, np.arange(PLACES), whitening, given.pop("calibration", calibration()), flow, **given)
        return features, flow

    return run


def healthy(values):
    return np.delete(values, LESION, axis=0)


def test_healthy_brain_comes_to_the_training_s_features_whatever_the_lesion_is_like(aligned, whitening):
    found = whitened(aligned(share=1.0)[0], whitening)
    # By less than the most unlike healthy places, which have no say: what has one is a little narrower than all.
    assert np.linalg.norm(healthy(found).mean(0)) < 0.05
    np.testing.assert_allclose(np.cov(healthy(found).T), np.eye(CHANNELS), atol=0.2)
    assert np.linalg.norm(found[LESION].mean(0)) > 10, "and the lesion stays as far off as it is: 6 in each of six"


def test_half_of_the_way_is_what_is_left_where_nothing_else_is_said(aligned, scan, whitening):
    before = healthy(whitened(scan, whitening)).mean(0)
    np.testing.assert_allclose(healthy(whitened(aligned()[0], whitening)).mean(0), before / 2, atol=0.1)


def test_none_of_the_way_leaves_all_as_it_is(aligned, scan):
    np.testing.assert_allclose(aligned(share=0.0)[0], scan, atol=1e-4)


def test_the_model_is_asked_once_and_at_one_place_of_some(aligned):
    ((features, places),) = aligned()[1].asked
    assert features.shape == (PLACES / EVERY, CHANNELS)
    np.testing.assert_array_equal(places, np.arange(0, PLACES, EVERY))


def test_what_looks_healthy_is_told_at_each_place_by_its_own_calibration(aligned, whitening):
    """Where the calibration expects the lesion's values, and nowhere else, it is healthy, and pulls."""
    expecting = calibration()
    expecting.mean.ravel()[LESION] = -20
    found = whitened(aligned(share=1.0, calibration=expecting)[0], whitening)
    assert np.linalg.norm(healthy(found).mean(0)) > 0.2


@pytest.mark.parametrize("places", [1, EVERY * CHANNELS])
def test_a_brain_of_too_few_places_to_tell_a_covariance_stays_as_it_is(scan, whitening, places):
    features = scan[:places].copy()
    align_to_itself(features, np.arange(places), whitening, calibration(), pytest.fail)
    np.testing.assert_array_equal(features, scan[:places])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [EVERY, EVERY + 1], ids=["looked at", "not looked at"])
def test_features_that_are_not_finite_stay_so_that_the_answer_says_it(scan, whitening, value, place):
    features = scan.copy()
    features[place] = value
    before = features.copy()
    align_to_itself(features, np.arange(PLACES), whitening, calibration(), pytest.fail)
    np.testing.assert_array_equal(features, before)


@pytest.mark.parametrize("answer", [np.nan, -np.inf])
def test_places_without_a_finite_answer_do_not_spoil_the_others(scan, whitening, answer):
    features, flow = scan.copy(), Flow(whitening)

    def ask(some, places):
        return np.where((places >= LESION.start) & (places < LESION.start + 6000), answer, flow(some, places))

    align_to_itself(features, np.arange(PLACES), whitening, calibration(), ask, 1.0)
    assert np.isfinite(features).all()


def test_a_brain_of_just_enough_places_gets_finite_features(scan, whitening):
    places = EVERY * CHANNELS + 1
    features = scan[:places].copy()
    align_to_itself(features, np.arange(places), whitening, calibration(), Flow(whitening))
    assert np.isfinite(features).all()
    assert np.abs(features - scan[:places]).max() > 0.1
