"""Encoder and flow trained together, after the epochs on the frozen encoder's features."""

import shutil
from dataclasses import replace

import pytest
import torch
from brains import brain_file

from ssn.core.errors import DataError
from ssn.core.geometry import GridConfig
from ssn.train.checkpoint import OPTIMISER_FILE, load_checkpoint
from ssn.train.distributed import Ranks
from ssn.train.encoder import EncoderConfig
from ssn.train.fit import fit
from ssn.train.network import ModelConfig
from ssn.train.presets import FitOptions

TINY = ModelConfig(
    encoder=EncoderConfig("tf_efficientnet_lite0", out_indices=(1,)),
    grid=GridConfig(plane=96, depth=96),  # small: a part of the brain
    width=None,
    whiten=True,
    blocks=1,
    plane_channels=8,
)
OPTIONS = FitOptions(epochs=1, batch=512, share=0.1, noise=1.0, anomalies="image", tune_encoder=2)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    return [brain_file(folder / f"{seed}.nii", (6.0, 6.0, 6.0), lesion=False, seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def tuned(scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    return folder, fit(TINY, scans, folder, OPTIONS, cache=folder / "features", weights="none")


def encoder(detector):
    return detector.network.encoder.state_dict()


def test_the_encoder_learns_and_keeps_its_batch_statistics_and_whitening(scans, tuned, tmp_path):
    options = replace(OPTIONS, tune_encoder=0)
    before = fit(TINY, scans, tmp_path, options, cache=tuned[0] / "features", weights="none")
    old, new = encoder(before), encoder(tuned[1])
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert any(name.endswith("conv.weight") or "conv" in name for name in changed)
    assert not any("running" in name or "num_batches" in name for name in changed)
    assert torch.equal(before.network.whitening, tuned[1].network.whitening)
    assert before.network.fingerprint() != tuned[1].network.fingerprint(), "cached features must not be mixed up"
    assert not any(p.requires_grad for p in tuned[1].network.parameters()), "frozen again"


def test_a_checkpoint_holds_the_tuned_encoder_and_says_so(tuned):
    folder, detector = tuned
    loaded = load_checkpoint(folder)
    assert all(torch.equal(value, encoder(loaded)[name]) for name, value in encoder(detector).items())
    assert len(loaded.record["tuning"]) == 2


@pytest.mark.parametrize("rounds", [0, 1])
def test_resuming_ends_in_the_weights_of_an_uninterrupted_run(scans, tuned, tmp_path, rounds):
    cache = tuned[0] / "features"
    fit(TINY, scans, tmp_path, replace(OPTIONS, tune_encoder=rounds), cache=cache, weights="none")
    resumed = fit(TINY, scans, tmp_path, OPTIONS, cache=cache, weights="none", resume=True)
    for one, other in ((encoder(tuned[1]), encoder(resumed)), (tuned[1].flow.state_dict(), resumed.flow.state_dict())):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_encoders_rate_may_change_until_it_was_used(scans, tuned, tmp_path):
    cache, other = tuned[0] / "features", replace(OPTIONS, tune_encoder=1, encoder_learning_rate=2e-5)
    fit(TINY, scans, tmp_path, replace(OPTIONS, tune_encoder=0), cache=cache, weights="none")
    fit(TINY, scans, tmp_path, other, cache=cache, weights="none", resume=True)
    assert load_checkpoint(tmp_path).record["options"]["encoder_learning_rate"] == 2e-5
    with pytest.raises(DataError, match="other settings"):
        fit(TINY, scans, tmp_path, OPTIONS, cache=cache, weights="none", resume=True)


def test_a_finished_training_needs_no_optimiser_to_be_taken_up_again(scans, tuned, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tuned[0], folder)
    (folder / OPTIMISER_FILE).unlink()
    again = fit(TINY, scans, folder, OPTIONS, cache=folder / "features", weights="none", resume=True)
    assert all(torch.equal(value, encoder(again)[name]) for name, value in encoder(tuned[1]).items())


@pytest.mark.parametrize(("loss", "anomalies"), [("triplet", "noise"), ("none", "image"), ("hard", "noise")])
def test_every_loss_can_train_the_encoder(scans, tuned, tmp_path, loss, anomalies):
    options = replace(OPTIONS, loss=loss, anomalies=anomalies, tune_encoder=1)
    detector = fit(TINY, scans, tmp_path, options, cache=tuned[0] / "features", weights="none")
    assert not all(torch.equal(value, encoder(tuned[1])[name]) for name, value in encoder(detector).items())


def test_what_cannot_be_trained_together_is_refused(scans, tuned, tmp_path):
    cache = tuned[0] / "features"
    with pytest.raises(DataError, match="without torchrun"):
        fit(TINY, scans, tmp_path, OPTIONS, cache=cache, weights="none", ranks=Ranks(0, 2))
    with pytest.raises(DataError, match="no more can follow"):
        fit(TINY, scans, tuned[0], replace(OPTIONS, epochs=2), cache=cache, weights="none", resume=True)
