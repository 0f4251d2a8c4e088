from dataclasses import replace

import numpy as np
import pytest
import torch
from brains import brain_array, brain_file, save

from ssn.core.errors import DataError
from ssn.core.geometry import GridConfig
from ssn.core.slices import cut_slices
from ssn.core.volume import read_volume
from ssn.train.encoder import EncoderConfig
from ssn.train.features import FeatureReader
from ssn.train.fit import fit
from ssn.train.network import FeatureNetwork, ModelConfig
from ssn.train.presets import FitOptions
from ssn.train.pseudo import LEAST_CHANGE, insert_blobs

TINY = ModelConfig(
    encoder=EncoderConfig("tf_efficientnet_lite0", out_indices=(1, 2)),
    width=None,
    whiten=True,
    blocks=2,
    plane_channels=16,
)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return brain_file(tmp_path_factory.mktemp("scan") / "healthy.nii.gz", lesion=False)


@pytest.fixture(scope="module")
def stack(scan):
    return cut_slices(read_volume(scan), GridConfig(), 48)


def test_blobs_change_the_brain_where_the_mask_says_and_nowhere_far_from_it(stack):
    from scipy.ndimage import binary_dilation

    altered, mask = insert_blobs(stack, seed=1, count=12)
    change = np.abs(altered.slices - stack.slices)
    assert mask.any()
    assert not change[stack.slices == 0].any(), "background stays background"
    assert change[mask].mean() > LEAST_CHANGE
    far = ~binary_dilation(mask, iterations=4)
    assert change[far].sum() < 0.01 * change.sum(), "a blob's edge is a few mm wide"
    assert altered.slices.min() >= 0
    assert altered.slices.max() <= 1


@pytest.fixture(scope="module")
def standardised(tmp_path_factory):
    """A brain whose grey values have mean 0, as the background is: half of it is below the background."""
    data, affine = brain_array((3.0,) * 3, lesion=False)
    inside = data[data > 0]
    path = tmp_path_factory.mktemp("standardised") / "z.nii"
    return save(path, np.where(data > 0, (data - inside.mean()) / inside.std(), 0), affine, dtype=np.float32)


def test_blobs_stay_in_a_brain_whose_background_is_not_its_minimum(standardised):
    stack = cut_slices(read_volume(standardised), GridConfig(), 48, "minmax")
    empty = stack.occupancy == 0
    assert stack.slices.reshape(-1, 3, 48, 4, 48, 4).max((1, 3, 5))[empty].any(), "background above 0"
    _, mask = insert_blobs(stack, seed=0, count=36)
    covered = mask.reshape(-1, 3, 48, 4, 48, 4).any((1, 3, 5))
    assert covered.any()
    assert not covered[empty].any()


def test_a_background_that_brain_only_would_take_for_brain_is_refused(standardised, scan, tmp_path):
    network = FeatureNetwork(replace(TINY, normalisation="minmax", brain_only=True), "none").eval()
    FeatureReader(network, None).features(scan)
    with pytest.raises(DataError, match=r"z\.nii: its background is not its lowest value"):
        FeatureReader(network, None).features(standardised)


def test_the_same_seed_draws_the_same_blobs_and_another_seed_others(stack):
    first, again, other = (insert_blobs(stack, seed, count=12)[1] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_more_blobs_change_more_of_the_brain(stack):
    few, many = (insert_blobs(stack, seed=1, count=count)[1] for count in (12, 36))
    assert many.sum() > few.sum()


def test_blob_and_halo_cells_are_told_apart_and_kept(scan, stack, tmp_path):
    torch.manual_seed(0)
    network = FeatureNetwork(TINY, "none").eval()
    found = FeatureReader(network, tmp_path).altered(scan, seed=1, blobs=12)
    _, mask = insert_blobs(stack, seed=1, count=12)
    coverage = mask.reshape(-1, 3, 48, 4, 48, 4).mean((1, 3, 5)).ravel()
    first = stack.first * 48**2
    assert len(found.blob.places) > 0
    assert (coverage[found.blob.places.numpy() - first] >= 0.5).all()
    assert (coverage[found.halo.places.numpy() - first] == 0).all()
    assert set(found.blob.places.tolist()) <= set(stack.occupied_places(0.5).tolist())
    again = FeatureReader(network, tmp_path).altered(scan, seed=1, blobs=12)
    assert torch.equal(again.blob.features, found.blob.features)
    more = FeatureReader(network, tmp_path).altered(scan, seed=1, blobs=36)
    assert len(more.blob.places) > len(found.blob.places), "what is kept of fewer blobs is not taken for more"


def test_training_pushes_pseudo_anomalies_below_healthy_locations(scan, tmp_path):
    options = FitOptions(epochs=6, batch=1024, share=0.3, anomalies="image", learning_rate=3e-3)
    detector = fit(TINY, [scan], tmp_path / "model", options, cache=tmp_path / "cache", weights="none")
    reader = FeatureReader(detector.network, tmp_path / "cache")
    healthy, altered = reader.features(scan), reader.altered(scan, 0, options.blobs)
    with torch.inference_mode():
        normal = detector.log_likelihood(healthy.features, healthy.places)
        anomalous = detector.log_likelihood(altered.blob.features, altered.blob.places)
    assert anomalous.median() < normal.quantile(0.1)


def test_pseudo_anomalies_with_the_triplet_loss_are_refused(scan, tmp_path):
    options = FitOptions(anomalies="image", loss="triplet")
    with pytest.raises(DataError, match="--anomalies noise"):
        fit(TINY, [scan], tmp_path, options, cache=tmp_path, weights="none")
