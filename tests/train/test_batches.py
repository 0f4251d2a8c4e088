"""Which locations an epoch and a step look at."""

from types import SimpleNamespace

import pytest
import torch

from ssn.train.batches import Altered, Pool, epoch_batches
from ssn.train.features import VolumeFeatures, measure_whitening
from ssn.train.presets import FitOptions
from ssn.train.step import make_step

SIZES = (30, 50, 1)
VOLUMES = [VolumeFeatures(torch.full((n, 2), float(n)).half(), torch.arange(n) + 1000 * n) for n in SIZES]


def epoch(seed=0, **options):
    return list(epoch_batches(VOLUMES, FitOptions(**options), torch.Generator().manual_seed(seed)))


def volumes_in(places):
    return {int(place) // 1000 for place in places}


def test_an_epoch_takes_its_share_of_each_volume_and_one_location_at_least():
    batches = epoch(share=0.2, batch=7, mix=3)
    places = torch.cat([places for _, places in batches])
    assert [int((places // 1000 == n).sum()) for n in SIZES] == [6, 10, 1]
    assert [len(places) for _, places in batches] == [7, 7, 3]
    for features, places in batches:
        assert features.dtype == torch.float32
        assert torch.equal(features, (places // 1000).float()[:, None].expand(-1, 2)), "each place with its features"


def test_as_many_volumes_as_are_mixed_are_in_a_batch():
    alone = [volumes_in(places) for _, places in epoch(share=1.0, batch=10, mix=1)]
    assert {len(found) for found in alone} == {1}
    whole = [volumes_in(places) for _, places in epoch(share=1.0, batch=81, mix=3)]
    assert whole == [set(SIZES)]
    assert volumes_in(epoch(share=1.0, batch=27, mix=3)[0][1]) >= {30, 50}, "shuffled together"


def test_another_epoch_takes_other_locations_of_volumes_in_another_order():
    taken = [[places.tolist() for _, places in epoch(seed, share=0.2, batch=7, mix=1)] for seed in (0, 0, *range(1, 9))]
    assert taken[0] == taken[1]
    assert len({frozenset(place for batch in one for place in batch) for one in taken[1:]}) == 9
    assert {volumes_in(one[0]).pop() for one in taken} == set(SIZES)
    inside = [place for batch in taken[0] for place in batch if place // 1000 == 50]
    assert inside != sorted(inside)


def pool(value, places):
    return Pool.of([VolumeFeatures(torch.full((5, 2), value).half(), torch.full((5,), places))])


@pytest.fixture
def detector():
    """One whose whitening adds 100."""
    return SimpleNamespace(network=SimpleNamespace(feature_mean=torch.zeros(2), whitened=lambda raw: raw + 100))


def step(detector, altered, **options):
    raw, places = torch.zeros(400, 2), torch.arange(400)
    return make_step(detector, raw, places, altered, FitOptions(**options), 9, torch.Generator().manual_seed(0))


def test_healthy_locations_near_an_anomaly_are_healthy_and_the_anomalous_come_last(detector):
    found = step(detector, Altered(pool(2.0, 2000), pool(1.0, 1000)), loss="hard")
    assert found.anomalous == 200
    assert found.features[:, 0].unique_consecutive(return_counts=True)[0].tolist() == [100, 101, 102]
    assert found.features[:, 0].unique_consecutive(return_counts=True)[1].tolist() == [400, 100, 200]
    assert found.places[400:].unique_consecutive().tolist() == [1000, 2000]


def test_without_pseudo_anomalies_whitened_features_with_noise_are_the_anomalous(detector):
    found = step(detector, None, loss="hard", noise=3.0)
    assert found.anomalous == 400
    assert (found.features[:400] == 100).all()
    assert found.features[400:].std() == pytest.approx(3, rel=0.1)
    assert torch.equal(found.places, torch.arange(400).repeat(2))
    plain = step(detector, None, loss="none")
    assert (plain.anomalous, len(plain.places)) == (0, 400)


def test_whitening_is_of_all_locations_of_all_volumes_and_its_ridge_a_share_of_the_mean_variance():
    torch.manual_seed(0)
    raw = (torch.randn(3000, 4) * torch.tensor([1.0, 2.0, 3.0, 8.0]) + 5).half()
    parts = [VolumeFeatures(part, torch.arange(len(part))) for part in raw.split((500, 2500))]
    mean, matrix = measure_whitening(parts, 4, ridge=0.5)
    torch.testing.assert_close(mean, raw.float().mean(0), atol=1e-3, rtol=0)
    variance = torch.linalg.eigvalsh(raw.float().T.cov(correction=0))
    found = matrix.square().sum(1).reciprocal()
    torch.testing.assert_close(found, variance + 0.5 * variance.mean(), rtol=1e-2, atol=0)
