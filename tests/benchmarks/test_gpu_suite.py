"""What of the GPU suite runs without a GPU: its references, its bookkeeping, and how it ends."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ssn.benchmarks.gpu.timing import attempt
from ssn.benchmarks.measure import Spread, environment, interleaved
from ssn.benchmarks.phantom import write_phantom
from ssn.cli.bench import app
from ssn.core.bundle import load_bundle
from ssn.core.errors import BackendError
from ssn.core.volume import read_volume
from ssn.runtime.backend import StageTimes, plan_batches
from ssn.runtime.cuda import find_device
from ssn.runtime.machine import cores
from ssn.runtime.onnxruntime import OnnxRuntimeBackend

ROOT = Path(__file__).parents[2]
needs_no_gpu = pytest.mark.skipif(find_device()[0] is not None, reason="there is a GPU here")


@needs_no_gpu
def test_without_a_gpu_the_suite_ends_in_one_clear_line(tmp_path):
    result = CliRunner().invoke(app, ["gpu", "-o", str(tmp_path / "gpu.json")])
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "needs an NVIDIA GPU" in result.stderr
    script = subprocess.run(
        [ROOT / "scripts" / "gpu_suite"], env=_environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert script.returncode == 1
    assert script.stderr.startswith("Error: ")
    assert len(script.stderr.strip().splitlines()) == 1
    assert list(tmp_path.rglob("*.json")) == []


def _environment(out):
    import os
    import sys

    return {**os.environ, "OUT": str(out), "PYTHON": sys.executable}


def test_the_script_refuses_a_site_that_is_not_there(tmp_path):
    result = subprocess.run(
        [ROOT / "scripts" / "gpu_suite", tmp_path / "nowhere"],
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "is not a folder" in result.stderr


def test_a_site_has_no_wheel_that_another_python_cannot_load(tmp_path):
    import os

    python = tmp_path / "python3"  # finds no wheel for that machine's, and makes one for its own
    made = '[ "$3" != wheel ] || touch "$7/odd-1-cp311-cp311-linux_x86_64.whl"'
    python.write_text(f'#!/bin/sh\n{made}\n[ "$3" != download ] || {{ echo "ERROR: none of odd" >&2; exit 1; }}\n')
    python.chmod(0o755)
    result = subprocess.run(
        [ROOT / "scripts" / "gpu_site", tmp_path / "site", "odd"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "Error: odd: no wheel for Python 3.12, and none can be made: ERROR: none of odd\n"
    assert not (tmp_path / "site").exists()


def test_the_script_vouches_for_nothing_that_its_run_did_not_write(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = - ] && exit 0\n[ "$4" = "$WRITES" ] && echo new >"$7"\nexit 137\n')
    python.chmod(0o755)
    (tmp_path / "gpu-compact.json").write_text("of an earlier run")
    models = "compact wide_resnet50_2 wide_resnet50_2-slab"
    settings = _environment(tmp_path) | {"PYTHON": str(python), "MODELS": models, "WRITES": "--model"}

    def run(**changed):
        command = [ROOT / "scripts" / "gpu_suite"]
        return subprocess.run(command, env=settings | changed, capture_output=True, text=True, check=False)

    nothing = [f"Error: {model}: ended with 137 before it wrote anything" for model in models.split()]
    assert run(WRITES="nothing").stderr.splitlines() == nothing
    assert (tmp_path / "gpu-compact.json").read_text() == "of an earlier run"
    written = [f"Error: {model}: ended with 137; its JSON has what was done" for model in models.split()]
    assert run().stderr.splitlines() == written
    unknown = run(MODELS="compact bogus")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("Error: MODELS: bogus: no such model; there are: compact ")


@pytest.mark.parametrize("given", [("--networks-3d", "--part", "torch"), ("--networks-3d", "--max-batch", "24"),
                                   ("--networks-3d", "--model", "compact"), ("--against", "VQVAE")])  # fmt: skip
def test_an_option_that_would_do_nothing_is_refused(given, tmp_path):
    result = CliRunner().invoke(app, ["gpu", "-o", str(tmp_path / "gpu.json"), *given])
    assert result.exit_code == 2
    assert f"{given[-2]} does nothing" in result.stderr


def test_the_torch_reference_computes_what_the_bundle_computes(tiny_detector, tiny_bundle, tmp_path):
    from ssn.benchmarks.gpu.detector import TorchDetector

    bundle = load_bundle(tiny_bundle)
    scan = write_phantom(tmp_path / "phantom.nii.gz", zoom=4.0)
    stack = bundle.spec.cut(read_volume(scan))
    batches = list(plan_batches(stack, bundle.spec.occupancy, 9))[3:5]
    given = TorchDetector(tiny_detector, torch.float32, device="cpu").run(batches)
    with OnnxRuntimeBackend(bundle) as backend:
        for one, other in zip(backend.run(batches, StageTimes()), given, strict=True):
            np.testing.assert_allclose(other, one, atol=1e-4)


def test_the_fused_trunk_computes_what_the_trunk_computes(tiny_detector):
    from ssn.benchmarks.gpu.fused import FusedNetwork, is_fusible
    from ssn.train.network import FeatureNetwork, ModelConfig

    torch.manual_seed(0)
    network = FeatureNetwork(ModelConfig(), weights="none").eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    slices = torch.rand(3, 1, 96, 96)
    with torch.inference_mode():
        wanted, fused = network(slices), FusedNetwork(network)
        given = fused(slices)
        again = fused(1 - slices)
        torch.testing.assert_close(again, network(1 - slices), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)
    assert is_fusible(network)
    assert not is_fusible(tiny_detector.network)


def test_a_3d_network_is_timed_in_both_layouts_and_counted_as_often_as_a_volume_needs_it():
    from ssn.benchmarks.baselines import Baseline
    from ssn.benchmarks.gpu.networks_3d import measure_networks

    class InFloat(torch.nn.Conv3d):  # refuses half precision, as some published code does
        def forward(self, volume):
            return super().forward(volume) @ torch.eye(volume.shape[-1])

    baselines = [
        Baseline("plain", "task peer", lambda shape: torch.nn.Conv3d(1, 2, 1), 8, passes=3),
        Baseline("in float", "ceiling", lambda shape: InFloat(1, 1, 1), 8),
        Baseline("broken", "ceiling", lambda shape: torch.nn.Conv3d(2, 2, 1), 8),
    ]
    found = dict(measure_networks(baselines, 4, (10, 8, 8), device="cpu"))
    plain = found["plain"]
    assert plain["shape"] == [16, 8, 8]
    assert plain["tflop_a_run"] == round(2 * 16 * 8 * 8 * 2 / 1e12, 4)
    assert plain["volume_ms"] == pytest.approx(3 * plain["best_ms"], abs=2e-3)
    assert {way["precision"] for way in plain["ways"].values()} == {"fp16"}
    assert {way["launched"]["rounds"] for way in plain["ways"].values()} == {4}
    assert {way["precision"] for way in found["in float"]["ways"].values()} == {"autocast to fp16"}
    assert "problem" in found["broken"]


def test_a_way_of_a_3d_network_that_fails_keeps_its_reason_and_costs_the_others_nothing(monkeypatch):
    from ssn.benchmarks.baselines import Baseline
    from ssn.benchmarks.gpu import networks_3d

    def in_layout(baseline, shape, memory_format, rounds, device, compiled):
        return {"launched": {"median_ms": 12.0}, "graph_problem": {"problem": "capturing is not permitted"}}

    monkeypatch.setattr(networks_3d, "_in_layout", in_layout)
    baseline = Baseline("plain", "task peer", lambda shape: torch.nn.Conv3d(1, 2, 1), 8, passes=3)
    (found,) = dict(networks_3d.measure_networks([baseline], 4, (8, 8, 8), device="cuda")).values()
    assert (found["best_ms"], found["volume_ms"]) == (12.0, 36.0)
    assert found["ways"]["channels last, compiled"]["graph_problem"] == {"problem": "capturing is not permitted"}


def test_flops_are_those_of_the_matrices(tiny_detector):
    from ssn.benchmarks.gpu.detector import count_flops

    encoder, flow = count_flops(tiny_detector)
    channels, code = tiny_detector.network.channels, 24
    hidden, half = channels // 2 + code, channels // 2
    block = 2 * (half * hidden + hidden * 2 * half + channels**2)  # first without its code, last, rotation
    assert flow == 2 * block
    assert encoder > 3 * 192**2 * 9 * 2


def test_rounds_are_interleaved_and_warm_ups_not_counted():
    calls = []
    spreads = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=4, warm_up=2)
    assert calls == ["a", "b"] * 6
    assert spreads["a"].rounds == 4
    spread = Spread.of([0.001, 0.002, 0.003, 0.004, 0.1])
    assert (spread.median_ms, spread.best_ms, spread.worst_ms) == (3.0, 1.0, 100.0)


def test_a_failure_is_recorded_with_its_reason_on_one_line():
    def fails():
        raise BackendError("no engine")

    def breaks():
        raise RuntimeError("two\nlines")

    assert attempt(fails) == {"problem": "no engine"}
    assert attempt(breaks) == {"problem": "RuntimeError: two lines"}


def test_the_environment_names_the_machine_and_the_versions():
    found = environment()
    assert found["cores"] == cores(), "those that this process may use"
    assert found["cpu"]
    assert "numpy" in found["packages"]
    assert (found["gpu"] is None) == (find_device()[0] is None)
