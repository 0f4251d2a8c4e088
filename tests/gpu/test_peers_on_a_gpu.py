"""Peers on a GPU: what each learns and finds there is what it learns and finds on the CPU."""

import numpy as np
import pytest
from brains import brain_file

torch = pytest.importorskip("torch", reason="peers are torch's models")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch finds none")


@pytest.mark.parametrize("name", ["patchcore", "padim", "cflow", "fastflow"])
def test_a_peer_finds_the_same_on_both(name, tmp_path, monkeypatch):
    pytest.importorskip("anomalib", reason="peers are anomalib's (extra peers)")
    import ssn.benchmarks.accuracy.backbone as backbone_module
    from ssn.benchmarks.accuracy.backbone import Backbone
    from ssn.benchmarks.accuracy.peers import PeerBudget, fit_peer, peer_method

    budget = PeerBudget(slices_a_volume=8, patches=2000, bank=400, padim_channels=10, cflow_epochs=1, fastflow_epochs=2)
    healthy = [brain_file(tmp_path / f"{seed}.nii", seed=seed) for seed in range(2)]
    lesioned = brain_file(tmp_path / "lesioned.nii", lesion=True, seed=9)
    maps = []
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(backbone_module, "choose_device", lambda wanted, device=device: torch.device(device))
        backbone = Backbone("resnet18", "none")
        slices = backbone.healthy_slices(healthy, budget.slices_a_volume)
        model = fit_peer(name, slices, backbone, budget)
        scored = peer_method(name, model, backbone, budget, 4.0)(lesioned)
        maps.append(scored.score_map[scored.brain])
    assert np.isfinite(maps[1]).all()
    # Matrix products round differently there, and training carries that on.
    assert np.corrcoef(maps)[0, 1] > 0.95


def test_the_autoencoder_finds_the_same_on_both(monkeypatch):
    pytest.importorskip("monai", reason="the 3D autoencoder is MONAI's (extra bench)")
    from ssn.benchmarks.accuracy import autoencoder

    healthy = np.random.default_rng(0).random((4, 64, 64, 64), np.float32)
    residuals = []
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(autoencoder, "choose_device", lambda wanted, device=device: torch.device(device))
        residuals.append(autoencoder.fit_autoencoder(healthy, autoencoder.AutoencoderBudget(epochs=4))(healthy[0]))
    assert np.isfinite(residuals[1]).all()
    assert np.corrcoef(residuals[0].ravel(), residuals[1].ravel())[0, 1] > 0.95
