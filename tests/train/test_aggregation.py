"""Aggregation equals the authors' unfold and adaptive pooling, without the unfold."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssn.core.geometry import GridConfig
from ssn.train.aggregation import aggregate, average_channels
from ssn.train.encoder import COMPACT
from ssn.train.network import FeatureNetwork, ModelConfig

DATA = Path(__file__).parents[1] / "data" / "aggregation.npz"


def unfold_and_pool(maps: list[Tensor], width: int) -> Tensor:
    """The paper's formulation: 3 x 3 patches, each layer pooled to `width` and then the layers together."""
    grid = maps[0].shape[-2:]
    layers = []
    for layer in maps:
        n, c, h, w = layer.shape
        patches = F.unfold(layer, kernel_size=3, padding=1).reshape(n, c * 9, h, w)
        patches = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False)
        flat = patches.permute(0, 2, 3, 1).reshape(-1, 1, c * 9)
        layers.append(F.adaptive_avg_pool1d(flat, width).squeeze(1))
    both = F.adaptive_avg_pool1d(torch.stack(layers, dim=1).flatten(1).unsqueeze(1), width).squeeze(1)
    slices = both.reshape(-1, *grid, width).permute(0, 3, 1, 2)
    return slices.reshape(-1, 3, width, *grid).mean(dim=1)


def test_features_agree_with_the_authors_own():
    with np.load(DATA) as data:
        maps = [torch.from_numpy(data[name]).float() for name in ("layer2", "layer3")]
        expected = torch.from_numpy(data["features"])
    torch.testing.assert_close(aggregate(maps, width=512), expected, atol=1e-5, rtol=0)


def test_features_equal_unfold_and_adaptive_pooling():
    maps = [torch.randn(6, 64, 10, 8), torch.randn(6, 128, 5, 4)]
    torch.testing.assert_close(aggregate(maps, width=64), unfold_and_pool(maps, 64), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("given", "wanted"), [(24, 24), (24, 8), (40, 24), (112, 30), (7, 5), (5, 8)])
def test_channel_means_equal_adaptive_average_pooling(given: int, wanted: int):
    features = torch.randn(2, given, 3, 4)
    expected = F.adaptive_avg_pool1d(features.flatten(2).transpose(1, 2), wanted).transpose(1, 2)
    torch.testing.assert_close(average_channels(features, wanted), expected.reshape(2, wanted, 3, 4))


def test_without_a_width_each_layer_keeps_its_channels():
    maps = [torch.randn(3, c, s, s) for c, s in ((24, 16), (40, 8), (112, 4))]
    features = aggregate(maps, width=None)
    assert features.shape == (1, 176, 16, 16)
    alone = F.avg_pool2d(maps[0], 3, 1, 1).mean(dim=0)
    torch.testing.assert_close(features[0, :24], alone)


def test_mean_max_and_attention_do_not_depend_on_the_order_inside_a_window():
    maps = [torch.randn(6, 8, 6, 6), torch.randn(6, 8, 3, 3)]
    shuffled = [m[[2, 0, 1, 4, 5, 3]] for m in maps]
    for pool in ("mean", "max", "attention"):
        torch.testing.assert_close(aggregate(maps, width=8, pool=pool), aggregate(shuffled, width=8, pool=pool))


def test_max_takes_the_largest_of_each_window():
    single = torch.randn(6, 8, 6, 6)
    every = aggregate([single], width=8, pool="none")
    expected = torch.stack([every[:3].amax(0), every[3:].amax(0)])
    assert torch.equal(aggregate([single], width=8, pool="max"), expected)


def test_attention_is_the_mean_of_equal_slices_and_nears_the_strongest_of_unequal_ones():
    single = F.normalize(torch.randn(1, 8, 4, 4), dim=1) * 8**0.5
    strong = torch.cat([single, single * 30, single * 0.1])
    equal = aggregate([single.repeat(3, 1, 1, 1)], width=8, pool="attention")
    torch.testing.assert_close(equal, aggregate([single], width=8, pool="none"))
    mean, attended = (aggregate([strong], width=8, pool=pool) for pool in ("mean", "attention"))
    assert (attended.abs() > mean.abs()).all()
    torch.testing.assert_close(attended, aggregate([strong[1:2]], width=8, pool="none"), rtol=0.05, atol=0.05)


def test_no_pooling_keeps_every_slice_of_any_number():
    assert aggregate([torch.randn(5, 8, 6, 6)], width=4, pool="none").shape == (5, 4, 6, 6)


def test_slices_that_do_not_fill_the_windows_are_refused():
    with pytest.raises(ValueError, match="5 slices do not fill windows of 3"):
        aggregate([torch.randn(5, 8, 6, 6)], width=4)


def test_a_width_that_the_layers_cannot_share_is_refused():
    with pytest.raises(ValueError, match="shared equally"):
        aggregate([torch.randn(3, 8, 6, 6)] * 2, width=7)


def test_background_has_no_say_at_the_brains_rim():
    maps = [torch.randn(3, 8, 12, 12), torch.randn(3, 16, 6, 6)]
    brain = torch.zeros(3, 1, 48, 48)
    brain[..., :22] = 1  # the rim runs through a cell of each map
    outside = [m.clone() for m in maps]
    outside[0][..., 6:] += 100
    outside[1][..., 3:] += 100
    kept = aggregate(maps, width=None, brain=brain)
    torch.testing.assert_close(aggregate(outside, width=None, brain=brain), kept)
    assert not torch.equal(aggregate(outside, width=None)[..., 5], aggregate(maps, width=None)[..., 5])
    constant = [torch.ones_like(m) for m in maps]
    found = aggregate(constant, width=None, brain=brain)
    torch.testing.assert_close(found[..., :6], torch.ones_like(found[..., :6]), msg="a mean of ones is 1 up to the rim")


def test_a_slice_that_is_all_brain_is_aggregated_as_published_away_from_its_border():
    maps = [torch.randn(3, 8, 8, 8)]
    published, within = (aggregate(maps, width=None, brain=b) for b in (None, torch.ones(3, 1, 32, 32)))
    torch.testing.assert_close(within[..., 1:-1, 1:-1], published[..., 1:-1, 1:-1])


@pytest.mark.parametrize("pool", ["slab", "middle"])
def test_with_thick_slices_the_encoder_sees_one_image_a_window(pool):
    config = ModelConfig(encoder=COMPACT, grid=GridConfig(plane=64, depth=12), width=None, pool=pool)
    network = FeatureNetwork(config, weights="none")
    seen = []
    network.encoder.register_forward_hook(lambda module, given, maps: seen.append(given[0].shape[0]))
    thick = torch.rand(2, 1, 64, 64)
    features = network(thick)
    assert seen == [2]
    assert torch.equal(features, aggregate(network.encoder(thick), width=None, pool="none"))
