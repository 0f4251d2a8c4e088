from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from brains import brain_file

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, load_bundle
from ssn.core.errors import ExportError
from ssn.core.volume import read_volume
from ssn.export import onnx as exporting
from ssn.runtime.backend import Batch
from ssn.train.checkpoint import build_detector
from ssn.train.network import FeatureNetwork


def noise(slices, seed=0, scale=1, each=3):
    """A batch of noise at the grid's first places."""
    values = np.random.default_rng(seed).random((slices, 1, 192, 192), np.float32) * scale
    return Batch(values, np.arange(0, slices // each * 24**2, 3), 0)


def test_onnx_runtime_says_what_torch_says(tiny_detector, tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    graphs = {name: bundle.read(name) for name in (ENCODER_FILE, FLOW_FILE)}
    batches = [noise(n, seed) for seed, n in enumerate((3, 6, 12))]
    assert exporting.measure_parity(tiny_detector, graphs, batches) < 1e-4


def test_of_thick_slices_the_encoder_takes_one_a_window(thick_detector, thick_bundle, tmp_path):
    bundle = load_bundle(thick_bundle)
    assert (bundle.spec.thick, bundle.spec.slices_a_window) == ("slab", 1)
    graphs = {name: bundle.read(name) for name in (ENCODER_FILE, FLOW_FILE)}
    assert exporting.measure_parity(thick_detector, graphs, [noise(n, n, each=1) for n in (1, 4)]) < 1e-4
    stack = bundle.spec.cut(read_volume(brain_file(tmp_path / "scan.nii")))
    assert len(stack.slices) == len(stack.occupancy)


def test_the_worst_place_of_the_worst_batch_is_what_they_differ_by(tiny_detector, tiny_bundle, monkeypatch):
    bundle, honest = load_bundle(tiny_bundle), exporting.torch_log_likelihood
    batches = [noise(n) for n in (6, 3)]

    def off_at_one_place(detector, batch):
        found = honest(detector, batch)
        found[5] -= 0.25 * (batch is batches[0])
        return found

    monkeypatch.setattr(exporting, "torch_log_likelihood", off_at_one_place)
    graphs = {name: bundle.read(name) for name in (ENCODER_FILE, FLOW_FILE)}
    assert exporting.measure_parity(tiny_detector, graphs, batches) == pytest.approx(0.25, abs=1e-3)


def test_means_over_brain_alone_are_exported(tiny_detector):
    config = replace(tiny_detector.config, brain_only=True)
    torch.manual_seed(0)
    detector = build_detector(config, FeatureNetwork(config, "none").eval(), 0)
    detector.flow.eval()
    batch = noise(6)
    batch.slices[..., 90:] = 0  # a rim
    assert exporting.measure_parity(detector, exporting.export_graphs(detector), [batch]) < 1e-4


def test_slices_like_no_brain_are_compared_relative_to_how_unlikely_they_are(tiny_detector, tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    graphs = {name: bundle.read(name) for name in (ENCODER_FILE, FLOW_FILE)}
    wild = [noise(3, scale=50)]
    absolute, relative = (exporting.measure_parity(tiny_detector, graphs, wild, far=far) for far in (False, True))
    assert relative <= absolute / 2, "these lie far beyond 1 nat a dimension"
    assert relative < 1e-4


def test_a_graph_that_differs_is_not_written(tiny_detector, tiny_calibration, tmp_path, monkeypatch):
    honest = exporting.export_graphs

    def distorted(detector):
        graphs = honest(detector)
        model = onnx.load_from_string(graphs[FLOW_FILE])
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.ndim == 2:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.05), tensor.name))
        return {**graphs, FLOW_FILE: model.SerializeToString()}

    monkeypatch.setattr(exporting, "export_graphs", distorted)
    with pytest.raises(ExportError, match="not written"):
        exporting.export_bundle(tiny_detector, tiny_calibration, tmp_path / "b", name="b", modality="t1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("random", "real"), [(2e-4, 9e-4), (9e-4, 2e-4), (2e-3, 0), (0, 2e-3)])
def test_the_larger_difference_of_noise_and_volumes_counts_and_is_on_record(
    tiny_detector, tiny_calibration, tiny_bundle, tmp_path, monkeypatch, random, real
):
    graphs = {name: load_bundle(tiny_bundle).read(name) for name in (ENCODER_FILE, FLOW_FILE)}
    monkeypatch.setattr(exporting, "export_graphs", lambda detector: graphs)
    monkeypatch.setattr(exporting, "measure_parity", lambda *given, far=False: random if far else real)
    detector = replace(tiny_detector, record={"seed": 3})
    options = {"name": "b", "modality": "t1", "about": {"accuracy": {"auroc": 0.9}}}
    if max(random, real) > 1e-3:
        with pytest.raises(ExportError, match=r"differs from torch by 2\.0e-03"):
            exporting.export_bundle(detector, tiny_calibration, tmp_path / "b", **options)
        return
    manifest = exporting.export_bundle(detector, tiny_calibration, tmp_path / "b", **options).manifest
    assert manifest["parity"]["log_likelihood_per_dimension"] == 9e-4
    assert (manifest["training"], manifest["accuracy"]) == ({"seed": 3}, {"auroc": 0.9})


def test_a_runtime_is_told_how_the_detector_was_trained_to_see(tiny_detector):
    config = replace(tiny_detector.config.pooled("middle"), occupancy=0.3, normalisation="minmax")
    spec = exporting.spec_of(replace(tiny_detector, config=config), "mine", "flair")
    assert (spec.name, spec.modality, spec.grid) == ("mine", "flair", config.grid)
    assert (spec.occupancy, spec.normalisation, spec.thick) == (0.3, "minmax", "middle")
    assert (spec.cells, spec.features) == (tiny_detector.network.cells, tiny_detector.network.channels)


def test_not_a_number_is_never_within_the_tolerance(
    tiny_detector, tiny_calibration, tiny_bundle, tmp_path, monkeypatch
):
    graphs = {name: load_bundle(tiny_bundle).read(name) for name in (ENCODER_FILE, FLOW_FILE)}
    monkeypatch.setattr(exporting, "export_graphs", lambda detector: graphs)
    honest = exporting.torch_log_likelihood
    for broken in range(3):  # of the two random batches and a real one
        left = iter(range(3))

        def answer(*given, left=left, broken=broken):
            found = honest(*given)
            return found * np.nan if next(left) == broken else found

        monkeypatch.setattr(exporting, "torch_log_likelihood", answer)
        with pytest.raises(ExportError, match="differs from torch by nan"):
            exporting.export_bundle(
                tiny_detector, tiny_calibration, tmp_path / "b", name="b", modality="t1", real=[noise(3)]
            )
    assert list(tmp_path.iterdir()) == []


def test_the_graphs_use_plain_operators_and_hold_no_paths(tiny_bundle):
    for name in (ENCODER_FILE, FLOW_FILE):
        data = (tiny_bundle / name).read_bytes()
        model = onnx.load_from_string(data)
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        assert not model.functions
        assert not {node.op_type for node in model.graph.node} & {
            "Loop",
            "If",
            "Scan",
            "SequenceAt",
            "GatherND",
        }
        assert b".py" not in data


def test_the_flow_file_does_not_hold_its_condition_tables(tiny_detector, tiny_bundle):
    flow_parameters = sum(p.numel() for p in tiny_detector.flow.parameters())
    codes = sum(b.numel() for b in tiny_detector.codes.buffers())
    assert (tiny_bundle / FLOW_FILE).stat().st_size < 4 * (flow_parameters + codes) + 100_000
