"""Peers look with what the detector looks with: its slices, and its encoder's network."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from trees import mask, plain, volume
from typer.testing import CliRunner

from ssn.benchmarks.accuracy.backbone import Backbone
from ssn.benchmarks.accuracy.methods import peers_backbone
from ssn.cli import bench
from ssn.core.errors import BundleError, SsnError
from ssn.core.geometry import PAPER_GRID
from ssn.core.volume import read_volume
from ssn.runtime.packaged import DEFAULT_BUNDLE
from ssn.train.checkpoint import load_checkpoint
from ssn.train.encoder import COMPACT, EncoderConfig
from ssn.train.fit import fit
from ssn.train.network import ModelConfig
from ssn.train.presets import FitOptions

# The published window and intensities, on an encoder that a test can afford.
WINDOW = ModelConfig(
    EncoderConfig("resnet18", (2, 3)), PAPER_GRID, normalisation="minmax", width=16, blocks=1, plane_channels=4
)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    root = tmp_path_factory.mktemp("healthy")
    return [volume(root / f"{seed}.nii.gz", seed) for seed in range(2)]


@pytest.fixture(scope="module")
def checkpoint(healthy, tmp_path_factory):
    """A detector on random weights of seed 5."""
    folder = tmp_path_factory.mktemp("model")
    options = FitOptions(epochs=1, loss="none", share=0.02, seed=5)
    fit(WINDOW, healthy[:1], folder, options, cache=folder / "features", weights="none")
    return folder


def test_the_packaged_model_s_peers_have_its_encoder_and_slices():
    spec = Backbone.of(DEFAULT_BUNDLE, "imagenet")
    assert spec == Backbone(COMPACT.name, "imagenet")


def test_a_bundle_that_does_not_name_its_encoder_is_refused(tmp_path):
    folder = shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle")
    manifest = json.loads((folder / "bundle.json").read_text())
    del manifest["architecture"]
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="does not name its encoder"):
        Backbone.of(folder, "imagenet")


def test_a_checkpoint_s_peers_see_its_window_with_its_random_weights(checkpoint, healthy):
    backbone = Backbone.of(checkpoint, "none")
    slices = backbone.healthy_slices(healthy, 5)
    assert slices.shape == (10, 1, 192, 192)
    stack = backbone.cut(read_volume(healthy[0]), 24)
    assert len(stack.slices) == 96
    np.testing.assert_array_equal(slices[0, 0], stack.slices[0])
    own = load_checkpoint(checkpoint).network.encoder(slices)
    for mine, theirs in zip(own, backbone.build((2, 3))(slices), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)  # folded, so not to the last digit
    assert backbone.build((4,)).strides == [32]


def test_an_encoder_s_own_file_serves_the_peers_that_read_no_deeper(checkpoint, tmp_path):
    tuned = tmp_path / "encoder.safetensors"  # without the last stage, as ssn-train finetune writes it
    save_file(load_checkpoint(checkpoint).network.encoder.state_dict(), tuned)
    assert peers_backbone(checkpoint, tuned, ["z-score", "patchcore"]).weights == tuned
    with pytest.raises(SsnError, match=r"encoder\.safetensors: not the weights of this encoder: layer 'layer4"):
        peers_backbone(checkpoint, tuned, ["cflow"])


def test_drawing_random_weights_leaves_the_caller_s_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Backbone("resnet18", "none").build((2,))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["patchcore", "padim", "cflow", "fastflow"])
def test_a_peer_learns_healthy_slices_and_scores_a_volume_on_its_own_grid(healthy, checkpoint, tmp_path, name):
    pytest.importorskip("anomalib", reason="peers are anomalib's (extra peers)")
    from ssn.benchmarks.accuracy.peers import PeerBudget, fit_peer, peer_method

    budget = PeerBudget(slices_a_volume=4, patches=500, bank=100, padim_channels=10, cflow_epochs=1, fastflow_epochs=2)
    lesioned = volume(tmp_path / "lesioned.nii.gz", 30, lesion=True)
    for backbone in (Backbone(), Backbone.of(checkpoint, "none")):
        slices = backbone.healthy_slices(healthy, budget.slices_a_volume)
        method, again = (
            peer_method(name, fit_peer(name, slices, backbone, budget), backbone, budget, 4.0) for _ in range(2)
        )
        scored = method(lesioned)
        assert scored.score_map.shape == read_volume(lesioned).data.shape
        assert np.isfinite(scored.score_map).all()
        seen = 0.85 if backbone.grid.paper else 0.9  # the published window leaves some brain out
        assert (scored.score_map[scored.brain] > 0).mean() > seen
        np.testing.assert_array_equal(scored.score_map, again(lesioned).score_map, "the same seed, the same map")


def test_weights_that_do_not_fit_the_model_s_encoder_are_one_line_before_any_work(tmp_path, monkeypatch):
    data = plain(tmp_path / "data", healthy=3)
    mask(data / "masks" / "none.nii.gz")
    monkeypatch.setattr("ssn.benchmarks.accuracy.methods.require_anomalib", lambda: None)
    wanted = ("--method", "padim", "--encoder-weights", tmp_path / "none.safetensors", "-o", tmp_path / "a.json")
    result = CliRunner().invoke(bench.app, [str(text) for text in ("accuracy", DEFAULT_BUNDLE, data, *wanted)])
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.strip().splitlines()
    assert "none.safetensors" in line
    assert not (tmp_path / "a.json").exists()


def test_the_autoencoder_learns_and_computes_where_the_peers_do(monkeypatch):
    pytest.importorskip("monai", reason="the 3D autoencoder is MONAI's (extra bench)")
    from ssn.benchmarks.accuracy import autoencoder

    monkeypatch.setattr(autoencoder, "choose_device", lambda wanted: torch.device("meta"))
    residual = autoencoder.fit_autoencoder(np.zeros((2, 64, 64, 64), np.float32), autoencoder.AutoencoderBudget(1))
    with pytest.raises(NotImplementedError, match="meta"):  # all was there, but that device has no numbers to give back
        residual(np.zeros((64, 64, 64), np.float32))
