import numpy as np
import pytest

from ssn.core.alignment import RIDGE, Moments, Whitening

CHANNELS = 6


@pytest.fixture(scope="module")
def learned():
    """Features that a whitening was measured on, as `ssn-train fit` does it, and the whitening."""
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(20_000, CHANNELS)) @ rng.normal(size=(CHANNELS, CHANNELS)) + 3).astype(np.float32)
    variance, directions = np.linalg.eigh(np.cov(features.T, bias=True))
    weight = (directions * (variance + RIDGE * variance.mean()) ** -0.5).T.astype(np.float32)
    return features, Whitening(weight, -weight @ features.mean(0))


def moments_of(features, centre, parts=3):
    first, *rest = (Moments.of(part, centre) for part in np.array_split(features, parts))
    return sum(rest, first)


def test_moments_of_parts_add_up_to_those_of_the_whole(learned):
    features, _ = learned
    found = moments_of(features, np.full(CHANNELS, 2.5))
    np.testing.assert_allclose(found.mean, features.mean(0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(found.covariance, np.cov(features.T, bias=True), rtol=1e-3, atol=1e-3)


def test_the_features_that_it_was_measured_on_keep_their_whitening(learned):
    features, whitening = learned
    np.testing.assert_allclose(whitening.mean, features.mean(0), atol=1e-3)
    aligned = whitening.aligned(moments_of(features, whitening.mean))
    np.testing.assert_allclose(aligned.weight, whitening.weight, atol=2e-3)
    np.testing.assert_allclose(aligned.bias, whitening.bias, atol=5e-3)


def test_features_that_a_scanner_has_turned_come_out_as_those_that_were_learned(learned):
    features, whitening = learned
    rng = np.random.default_rng(1)
    other = features[::2] @ (np.eye(CHANNELS) + 0.4 * rng.normal(size=(CHANNELS, CHANNELS))) + rng.normal(size=CHANNELS)
    other = other.astype(np.float32)
    before = other @ whitening.weight.T + whitening.bias
    assert np.abs(before.mean(0)).max() > 0.3
    assert np.abs(np.cov(before.T) - np.eye(CHANNELS)).max() > 0.5
    aligned = whitening.aligned(moments_of(other, whitening.mean))
    after = other @ aligned.weight.T + aligned.bias
    np.testing.assert_allclose(after.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(after.T), np.eye(CHANNELS), atol=0.1, err_msg="less the ridge")


def test_a_part_of_the_way_leaves_the_rest_of_the_difference(learned):
    features, whitening = learned
    whitened = features @ whitening.weight.T + whitening.bias  # of covariance 1, less the ridge
    scales = np.array([0.25, 0.5, 1, 2, 4, 1]) ** 0.5
    other = ((whitened * scales + 2) - whitening.bias) @ np.linalg.inv(whitening.weight).T.astype(np.float32)
    moments = moments_of(other.astype(np.float32), whitening.mean)
    for share in (0, 0.25, 0.5, 1):
        matrix, offset = whitening.align(moments, share)
        brought = (other @ matrix.T + offset) @ whitening.weight.T + whitening.bias
        variances = np.sort(np.linalg.eigvalsh(np.cov(brought.T)))
        np.testing.assert_allclose(variances, np.sort(scales**2) ** (1 - share), rtol=0.2, err_msg="less the ridge")
        left = np.linalg.norm(brought.mean(0)) / np.linalg.norm((other @ whitening.weight.T + whitening.bias).mean(0))
        assert (share == 1) == (left < 1e-3)
        assert share or left == pytest.approx(1, abs=1e-3), "none of the way changes nothing"


def test_a_direction_that_does_not_vary_is_not_blown_up(learned):
    features, whitening = learned
    flat = features.copy()
    flat[:, 0] = flat[:, 1]
    aligned = whitening.aligned(moments_of(flat, whitening.mean)).weight
    assert np.isfinite(aligned).all()
    assert np.abs(aligned).max() < RIDGE**-0.5 * np.abs(whitening.weight).max()
