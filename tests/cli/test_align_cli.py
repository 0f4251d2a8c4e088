"""What `ssn-export calibrate` does to a bundle's features."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from brains import brain_file
from commands import run

from ssn.cli.export import app
from ssn.core.alignment import RIDGE
from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, load_bundle, write_bundle
from ssn.core.calibrate import FOLDS
from ssn.core.onnx_data import weights, with_weights
from ssn.export.onnx import export_bundle
from ssn.runtime.align import SHARE, Alignment, measure_alignment, read_whitening
from ssn.runtime.backend import DEFAULT_BATCH, plan_batches
from ssn.runtime.calibrate import calibrate_on
from ssn.runtime.healthy import read_healthy
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.train.checkpoint import Detector
from ssn.train.network import FeatureNetwork


def calibrate(bundle, *arguments):
    return run(app, "calibrate", "--model", bundle, *arguments, "--threads", 1)


def measured(paths, bundle, share=1.0):
    with OnnxRuntimeBackend(bundle, 1) as backend:
        return measure_alignment(paths, bundle, read_whitening(bundle), backend, share=share)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    return [brain_file(folder / f"s{seed}.nii.gz", (5.0, 5.0, 5.0), lesion=False, seed=seed) for seed in range(5)]


def test_the_features_of_its_volumes_come_out_whitened(bundle, scans):
    alignment = measured(scans, bundle)
    held = weights(alignment.aligned().read(FLOW_FILE))
    weight, bias = held["whitening.weight"], held["whitening.bias"]
    first, *rest = alignment.moments
    features = sum(rest, first)
    np.testing.assert_allclose(weight @ features.mean + bias, 0, atol=1e-3)
    ridge = RIDGE * np.diag(features.covariance).mean() * np.eye(len(bias))
    np.testing.assert_allclose(weight @ (features.covariance + ridge) @ weight.T, np.eye(len(bias)), atol=1e-3)


def test_a_part_of_the_way_is_what_a_bundle_is_given(bundle, scans):
    alignment = measured(scans, bundle, SHARE)
    first, *rest = alignment.moments
    expected = alignment.whitening.aligned(sum(rest, first), SHARE)
    held = weights(alignment.aligned().read(FLOW_FILE))
    np.testing.assert_array_equal(held["whitening.weight"], expected.weight)
    np.testing.assert_array_equal(held["whitening.bias"], expected.bias)
    whole = weights(replace(alignment, share=1.0).aligned().read(FLOW_FILE))["whitening.bias"]
    assert np.abs(whole - expected.bias).max() > 0.01


def test_a_volume_is_compared_under_an_alignment_that_has_not_seen_it(bundle, scans, tmp_path):
    extra = [brain_file(tmp_path / f"x{seed}.nii.gz", (5.0, 5.0, 5.0), lesion=False, seed=seed) for seed in (5, 6)]
    paths = [*scans, *extra]
    alignment = measured(paths, bundle)
    ran = {}

    class Noted(OnnxRuntimeBackend):
        def run(self, batches, times):
            batches = list(batches)
            ran[batches[0].slices.tobytes()] = self._bundle.read(FLOW_FILE)
            return super().run(batches, times)

    first = {}
    for path, _, look in read_healthy(paths, bundle, pytest.fail):
        first[path] = next(plan_batches(look.stack, bundle.spec.occupancy, DEFAULT_BATCH)).slices.tobytes()
    calibrate_on(paths, bundle, lambda aligned: Noted(aligned, 1), alignment=alignment)
    assert len(ran) == len(paths) > FOLDS
    for index, path in enumerate(paths):
        others = [one for other, one in enumerate(alignment.moments) if other % FOLDS != index % FOLDS]
        assert ran[first[path]] == Alignment(bundle, alignment.whitening, others, alignment.share).aligned().read(
            FLOW_FILE
        )


def test_engines_are_of_the_flow_as_it_was_and_refused(tiny_bundle, scans, tmp_path):
    result = calibrate(tiny_bundle, *scans, "-o", tmp_path / "new", "--backend", "tensorrt")
    assert result.exit_code == 1
    assert result.stderr == "Error: an aligned flow has no engine yet; leave out --backend, or give --no-align\n"
    assert not (tmp_path / "new").exists()


def test_either_backend_of_the_cpu_gives_the_features(tiny_bundle, scans, tmp_path):
    pytest.importorskip("openvino")
    held = []
    for backend in ("onnxruntime", "openvino"):
        result = calibrate(tiny_bundle, *scans, "-o", tmp_path / backend, "--backend", backend)
        assert result.exit_code == 0, result.stderr
        held.append(weights(load_bundle(tmp_path / backend).read(FLOW_FILE))["whitening.weight"])
    np.testing.assert_allclose(*held, atol=1e-3)
    assert np.abs(held[0] - weights(load_bundle(tiny_bundle).read(FLOW_FILE))["whitening.weight"]).max() > 0.1


def test_what_cannot_compute_says_so_before_anything_is_measured(tiny_bundle, scans, tmp_path, monkeypatch):
    monkeypatch.setattr("ssn.runtime.align.read_healthy", pytest.fail)
    result = calibrate(tiny_bundle, *scans, "-o", tmp_path / "new", "--device", "cuda")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: nothing can run as asked")


@pytest.mark.parametrize("damage", ["zeros", "short"])
def test_a_whitening_that_cannot_be_is_one_line(bundle, scans, tmp_path, damage):
    flow = bundle.read(FLOW_FILE)
    weight = weights(flow)["whitening.weight"]
    if damage == "zeros":
        flow = with_weights(flow, {"whitening.weight": np.zeros_like(weight)})
    else:
        model = onnx.load_from_string(flow)
        (tensor,) = (one for one in model.graph.initializer if one.name == "whitening.weight")
        tensor.raw_data = tensor.raw_data[:-4]
        flow = model.SerializeToString()
    graphs = {ENCODER_FILE: bundle.read(ENCODER_FILE), FLOW_FILE: flow}
    write_bundle(tmp_path / "damaged", bundle.spec, graphs, bundle.calibration, {})
    result = calibrate(tmp_path / "damaged", *scans, "-o", tmp_path / "new")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "flow.onnx: its whitening is no such thing" in result.stderr


def test_features_that_are_not_whitened_stay_as_they_are(tiny_detector, tiny_calibration, scans, tmp_path):
    network = FeatureNetwork(replace(tiny_detector.config, whiten=False), weights="none").eval()
    plain = Detector(network.config, network, tiny_detector.flow, tiny_detector.codes, tiny_detector.record)
    export_bundle(plain, tiny_calibration, tmp_path / "plain", name="plain", modality="t1")
    assert (result := calibrate(tmp_path / "plain", *scans, "-o", tmp_path / "ours")).exit_code == 0
    ours = load_bundle(tmp_path / "ours")
    assert ours.read(FLOW_FILE) == load_bundle(tmp_path / "plain").read(FLOW_FILE)
    assert ours.manifest["calibration"]["aligned"] == 0
    assert result.stderr == "Warning: the model does not whiten all its features, so they are not aligned\n"
