import json
import shutil
from dataclasses import replace

import pytest
import torch
from brains import brain_file
from safetensors import SafetensorError

from ssn.core.bundle import CALIBRATION_FILE
from ssn.core.errors import DataError, OutputError
from ssn.export.onnx import TOLERANCE, export_graphs, measure_parity, random_batches
from ssn.train import features, tensor_files
from ssn.train.batches import epoch_batches
from ssn.train.checkpoint import OPTIMISER_FILE, RECORD_FILE, WEIGHTS_FILE, load_checkpoint
from ssn.train.encoder import EncoderConfig
from ssn.train.features import AlteredFeatures, FeatureReader, VolumeFeatures, align_volumes, measure_whitening
from ssn.train.fit import fit
from ssn.train.network import FeatureNetwork, ModelConfig
from ssn.train.presets import FitOptions

TINY = ModelConfig(
    encoder=EncoderConfig("tf_efficientnet_lite0", out_indices=(1, 2)),
    width=None,
    whiten=True,
    blocks=2,
    plane_channels=16,
    depth_channels=8,
)
OPTIONS = FitOptions(epochs=3, batch=512, share=0.05, mix=2, noise=1.0, seed=5)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    return [brain_file(folder / f"{seed}.nii.gz", lesion=False, seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def state(folder):
    return load_checkpoint(folder).flow.state_dict()


@pytest.mark.parametrize(
    ("loss", "aligned"), [("spp", False), ("triplet", False), ("hard", False), ("none", False), ("none", True)]
)
def test_a_resumed_run_ends_in_the_same_weights_as_an_uninterrupted_one(tmp_path, scans, cache, loss, aligned):
    config, options = replace(TINY, aligned=aligned), replace(OPTIONS, loss=loss)
    fit(config, scans, tmp_path / "whole", options, cache=cache, weights="none")
    fit(config, scans, tmp_path / "parts", replace(options, epochs=1), cache=cache, weights="none")
    fit(config, scans, tmp_path / "parts", options, cache=cache, weights="none", resume=True)
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    history = json.loads((tmp_path / "parts" / RECORD_FILE).read_text())["history"]
    assert len(history) == 3


def test_training_raises_the_likelihood(tmp_path, scans, cache):
    detector = fit(TINY, scans, tmp_path, replace(OPTIONS, loss="none"), cache=cache, weights="none")
    history = detector.record["history"]
    assert history[-1]["log_likelihood"] > history[0]["log_likelihood"]


def test_resuming_with_other_settings_is_refused(tmp_path, scans, cache):
    fit(TINY, scans, tmp_path, replace(OPTIONS, epochs=1), cache=cache, weights="none")
    with pytest.raises(DataError, match="other settings"):
        fit(TINY, scans, tmp_path, replace(OPTIONS, noise=0.5), cache=cache, weights="none", resume=True)


def test_the_encoders_rate_may_be_chosen_until_it_is_tuned(tmp_path, scans, cache):
    fit(TINY, scans, tmp_path, replace(OPTIONS, epochs=1), cache=cache, weights="none")
    fit(
        TINY,
        scans,
        tmp_path,
        replace(OPTIONS, epochs=1, encoder_learning_rate=0.5),
        cache=cache,
        weights="none",
        resume=True,
    )


def test_a_folder_that_is_no_checkpoint_is_told_so(tmp_path):
    with pytest.raises(DataError, match="is not a checkpoint"):
        load_checkpoint(tmp_path)
    (tmp_path / RECORD_FILE).write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        load_checkpoint(tmp_path)


def test_features_come_from_the_cache_the_second_time_and_follow_the_encoder(scans, tmp_path):
    torch.manual_seed(1)
    network = FeatureNetwork(TINY, "none").eval()
    first = FeatureReader(network, tmp_path).features(scans[0])
    entry = next(tmp_path.iterdir())
    touched = entry.stat().st_mtime_ns
    again = FeatureReader(network, tmp_path).features(scans[0])
    assert torch.equal(first.features, again.features)
    assert entry.stat().st_mtime_ns == touched
    entry.write_bytes(b"damaged")
    assert torch.equal(FeatureReader(network, tmp_path).features(scans[0]).features, first.features)
    torch.manual_seed(2)
    other = FeatureReader(FeatureNetwork(TINY, "none").eval(), tmp_path).features(scans[0])
    assert not torch.equal(first.features, other.features)


def test_features_that_are_not_to_be_kept_are_neither_written_nor_read(scans, tmp_path, monkeypatch):
    reader = FeatureReader(FeatureNetwork(TINY, "none").eval(), tmp_path)
    answers = [
        VolumeFeatures(torch.full((1, 2), value), torch.zeros(1, dtype=torch.int64)) for value in (1.0, 2.0, 3.0)
    ]
    monkeypatch.setattr(features, "compute_features", lambda network, stack: answers.pop(0))
    found = [reader.features(scans[0], "its slices", keep=keep).features[0, 0] for keep in (False, True, True, False)]
    assert found == [1, 2, 2, 3]


def test_whitened_features_have_mean_0_and_unit_covariance():
    torch.manual_seed(0)
    raw = (torch.randn(20000, 6) @ torch.randn(6, 6) + 3).half()
    mean, matrix = measure_whitening([VolumeFeatures(raw, torch.arange(len(raw)))], raw.shape[1], ridge=1e-9)
    white = (raw.float() - mean) @ matrix.T
    torch.testing.assert_close(white.mean(0), torch.zeros(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(6), atol=5e-3, rtol=0)


def spread_of(found):
    return found.features.float().mean(0), torch.cov(found.features.float().T)


def test_aligned_volumes_all_have_mean_and_covariance_of_all_and_what_was_put_into_them_goes_along():
    torch.manual_seed(1)
    places = torch.arange(20_000)
    volumes = [
        VolumeFeatures((torch.randn(20_000, 4) @ (torch.eye(4) + 0.3 * torch.randn(4, 4)) + shift).half(), places)
        for shift in (0, 2, -1)
    ]
    together = VolumeFeatures(torch.cat([volume.features for volume in volumes]), places)
    raw = [volume.features.float() for volume in volumes]
    parts = (slice(9), slice(9, 14))
    altered = [
        AlteredFeatures(*(replace(volume, features=volume.features[part]) for part in parts)) for volume in volumes
    ]
    align_volumes(volumes, altered)
    mean, covariance = spread_of(together)
    for found, before, with_it in zip(volumes, raw, altered, strict=True):
        torch.testing.assert_close(spread_of(found)[0], mean, atol=0.02, rtol=0)
        torch.testing.assert_close(spread_of(found)[1], covariance, atol=0.05, rtol=0)
        assert torch.equal(with_it.blob.features, found.features[:9])
        assert torch.equal(with_it.halo.features, found.features[9:14])
        given, brought = torch.cat([before, torch.ones(20_000, 1)], 1), found.features.float()
        left = brought - given @ torch.linalg.lstsq(given, brought).solution
        assert left.abs().max() < 0.02, "one linear map a volume, but for half precision"
    align_volumes(volumes, [])
    for found, with_it in zip(volumes, altered, strict=True):  # nothing is left to do
        torch.testing.assert_close(found.features[:9], with_it.blob.features, atol=0.02, rtol=0.01)


def test_an_aligned_flow_has_seen_other_features_whitened_alike(tmp_path, scans, cache):
    aligned = replace(TINY, aligned=True)
    plain, own = (
        fit(config, scans, tmp_path / str(config.aligned), OPTIONS, cache=cache, weights="none")
        for config in (TINY, aligned)
    )
    torch.testing.assert_close(own.network.feature_mean, plain.network.feature_mean, atol=0.01, rtol=0.01)
    assert any(not torch.equal(a, b) for a, b in zip(plain.flow.parameters(), own.flow.parameters(), strict=True))
    assert load_checkpoint(tmp_path / "True").config.aligned
    with pytest.raises(DataError, match="--align has aligned; leave out one"):
        fit(aligned, scans, tmp_path / "tuned", replace(OPTIONS, tune_encoder=1), cache=cache, weights="none")
    for other in ({"whiten": False}, {"components": 3}):
        with pytest.raises(ValueError, match="all of them"):
            replace(aligned, **other)


def test_fewer_components_are_those_that_vary_most_and_reach_flow_and_bundle(scans, cache, tmp_path):
    raw = torch.randn(5000, 6) * torch.tensor([1.0, 5.0, 0.1, 9.0, 0.2, 0.3])
    _, matrix = measure_whitening([VolumeFeatures(raw.half(), torch.arange(len(raw)))], 2, ridge=1e-9)
    assert matrix.shape == (2, 6)
    assert set(matrix.abs().argmax(1).tolist()) == {1, 3}
    narrow = replace(TINY, components=5, hidden=7)
    detector = fit(narrow, scans, tmp_path / "narrow", OPTIONS, cache=cache, weights="none")
    assert detector.network.whitening.shape == (5, detector.network.channels)
    assert detector.flow.config.features == 5
    assert detector.flow.inn[0].subnet[0].out_features == 7
    loaded = load_checkpoint(tmp_path / "narrow")
    graphs = export_graphs(loaded)
    assert measure_parity(loaded, graphs, random_batches(loaded), far=True) < TOLERANCE
    with pytest.raises(ValueError, match="whiten=True"):
        replace(TINY, whiten=False, components=5)


def test_an_epoch_sees_each_location_at_most_once():
    volumes = [VolumeFeatures(torch.full((n, 2), float(n)).half(), torch.arange(n) + 1000 * n) for n in (30, 50)]
    batches = list(epoch_batches(volumes, FitOptions(batch=7, mix=2), torch.Generator().manual_seed(0)))
    places = torch.cat([places for _, places in batches])
    assert len(places) == 80
    assert len(places.unique()) == 80


def test_an_empty_cohort_is_refused(tmp_path, cache):
    with pytest.raises(DataError, match="no healthy volume"):
        fit(TINY, [], tmp_path, OPTIONS, cache=cache, weights="none")


def test_resuming_with_other_volumes_is_refused(tmp_path, scans, cache):
    options = replace(OPTIONS, epochs=1)
    fit(TINY, scans, tmp_path, options, cache=cache, weights="none")
    with pytest.raises(DataError, match=r"other volumes \(2 then, 1 now\)"):
        fit(TINY, scans[:1], tmp_path, replace(options, epochs=2), cache=cache, weights="none", resume=True)
    (tmp_path / "swapped").mkdir()
    swapped = [brain_file(tmp_path / "swapped" / scan.name, lesion=True, seed=9) for scan in scans]
    with pytest.raises(DataError, match="other volumes"):
        fit(TINY, swapped, tmp_path, replace(options, epochs=2), cache=cache, weights="none", resume=True)
    with pytest.raises(DataError, match="other --encoder-weights"):
        fit(TINY, scans, tmp_path, replace(options, epochs=2), cache=cache, resume=True)


def test_more_training_ends_a_calibration(tmp_path, scans, cache):
    options = replace(OPTIONS, epochs=1)
    fit(TINY, scans, tmp_path, options, cache=cache, weights="none")
    (tmp_path / CALIBRATION_FILE).write_bytes(b"of the first epoch's weights")
    fit(TINY, scans, tmp_path, options, cache=cache, weights="none", resume=True)
    assert (tmp_path / CALIBRATION_FILE).exists(), "nothing was trained"
    fit(TINY, scans, tmp_path, replace(options, epochs=2), cache=cache, weights="none", resume=True)
    assert not (tmp_path / CALIBRATION_FILE).exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SafetensorError("I/O error: No space left on device")])
def test_a_checkpoint_that_could_not_be_written_whole_stays_the_one_before(tmp_path, scans, cache, monkeypatch, error):
    part, save = replace(OPTIONS, epochs=1), tensor_files.save_file

    def cut_off(tensors, path, metadata):
        if path.name.endswith(OPTIMISER_FILE):
            raise error
        save(tensors, path, metadata)

    fit(TINY, scans, tmp_path, part, cache=cache, weights="none")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patched, pytest.raises((KeyboardInterrupt, OutputError)):
        patched.setattr(tensor_files, "save_file", cut_off)
        fit(TINY, scans, tmp_path, OPTIONS, cache=cache, weights="none", resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_checkpoint_of_several_steps_is_not_gone_on_with(tmp_path, scans, cache):
    for name, epochs in (("one", 1), ("two", 2)):
        fit(TINY, scans, tmp_path / name, replace(OPTIONS, epochs=epochs), cache=cache, weights="none")

    def resume(change):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        change(shutil.copytree(tmp_path / "one", tmp_path / "copy"))
        fit(TINY, scans, tmp_path / "copy", OPTIONS, cache=cache, weights="none", resume=True)

    for file in (WEIGHTS_FILE, OPTIMISER_FILE):
        with pytest.raises(DataError, match=rf"{file}: is from epoch 2 and the record beside it from epoch 1"):
            resume(lambda folder, file=file: shutil.copy(tmp_path / "two" / file, folder / file))
    with pytest.raises(DataError, match=rf"{OPTIMISER_FILE}: cannot be read"):
        resume(lambda folder: (folder / OPTIMISER_FILE).unlink())
    with pytest.raises(DataError, match=rf"{OPTIMISER_FILE}: cannot be read"):
        resume(lambda folder: (folder / OPTIMISER_FILE).write_bytes(b"no tensors"))
    with pytest.raises(DataError, match="has been trained for 2 epochs, more than the 1 asked for"):
        fit(TINY, scans, tmp_path / "two", replace(OPTIONS, epochs=1), cache=cache, weights="none", resume=True)
