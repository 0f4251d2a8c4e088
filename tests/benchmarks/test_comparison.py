"""Comparing with 3D networks: the arithmetic of ratios, small real comparisons, the claim, and the report."""

import shutil
import subprocess
import tracemalloc
from functools import partial

import numpy as np
import pytest
from torch import nn

import ssn.benchmarks.latency as latency_module
import ssn.benchmarks.measure as measure_module
from ssn.benchmarks import contenders, one_volume
from ssn.benchmarks.baselines import BASELINES, Baseline, FullResolutionAutoencoder, choose_baselines
from ssn.benchmarks.claim import check_claim, holds
from ssn.benchmarks.contenders import SliceModel, known_accuracy
from ssn.benchmarks.costs import Costs, count_costs
from ssn.benchmarks.latency import (
    LatencyPlan,
    _too_slow,
    _undecided,
    count_blocks,
    measure_latency,
)
from ssn.benchmarks.measure import Clock, Ratio, timed_rounds
from ssn.benchmarks.runners import choose_engines
from ssn.benchmarks.throughput import measure_slices
from ssn.benchmarks.volumes import make_scan
from ssn.core.bundle import load_bundle
from ssn.core.errors import BackendError


def test_a_ratio_is_undecided_when_its_interval_includes_what_was_asked():
    assert Ratio(4.0, 3.5, 4.5).verdict(3.3) == "holds"
    assert Ratio(3.0, 2.5, 3.2).verdict(3.3) == "does not hold"
    assert Ratio(3.4, 3.1, 3.6).verdict(3.3) == "undecided"
    assert Ratio(3.4, 3.3, 3.6).verdict(3.3) == "holds", "at least 3.3 times"
    assert Ratio(3.2, 3.1, 3.3).verdict(3.3) == "undecided"


def test_a_ratio_is_of_medians_and_what_disturbs_a_round_disturbs_both():
    assert Ratio.bootstrap([4.0, 4.2, 90.0], [1.0, 1.0, 1.0]).value == pytest.approx(4.2)
    slower = np.array([1.0, 2.0, 5.0, 9.0, 17.0])
    found = Ratio.bootstrap(list(3 * slower), list(slower))
    assert (found.low, found.high) == (pytest.approx(3), pytest.approx(3))


def test_a_bootstrap_interval_holds_the_ratio_and_narrows_with_more_rounds():
    rng = np.random.default_rng(0)

    def interval(rounds):
        return Ratio.bootstrap(list(rng.normal(6.6, 0.3, rounds)), list(rng.normal(2.0, 0.1, rounds)))

    few, many = interval(5), interval(200)
    assert many.low < 3.3 < many.high
    assert many.high - many.low < few.high - few.low
    with pytest.raises(ValueError, match="at least 3"):
        Ratio.bootstrap([1.0, 1.0], [1.0, 1.0])


def test_three_rounds_decide_only_what_all_of_them_say():
    assert Ratio.bootstrap([4.0, 4.2, 4.1], [1.0, 1.0, 1.0]).verdict(3.3) == "holds"
    assert Ratio.bootstrap([4.0, 3.0, 4.1], [1.0, 1.0, 1.0]).verdict(3.3) == "undecided"


def test_parts_that_a_run_measured_itself_are_kept_beside_the_clock():
    samples = timed_rounds({"a": lambda: {"net": 0.5}, "b": lambda: None}, rounds=3, warm_up=1)
    assert samples["a"]["net"] == [0.5] * 3
    assert len(samples["a"]["total"]) == len(samples["b"]["total"]) == 3
    assert set(samples["b"]) == {"total"}


def test_rounds_are_told_between_runs_and_never_during_one():
    events = []
    runs = {name: lambda name=name: events.append(name) for name in "ab"}
    timed_rounds(runs, rounds=2, warm_up=1, tell=lambda step, steps: events.append(f"{step} of {steps}"))
    assert events == ["a", "b", "1 of 3", "a", "b", "2 of 3", "a", "b", "3 of 3"]


def test_time_is_shared_and_what_does_not_fit_is_left_out_slowest_first():
    clock = Clock(1.0, 3)
    assert clock.share() == pytest.approx(20, abs=0.5)
    assert clock.share() == pytest.approx(30, abs=0.5)
    assert Clock(None, 3).share() == float("inf")
    assert _too_slow({"a": 1.0, "b": 30.0, "c": 5.0}, others=1.0, share=30.0) == ["b"]
    assert _too_slow({"a": 1.0}, others=1.0, share=float("inf")) == []
    assert _too_slow({"a": 0.5, "b": 2.0}, others=1.0, share=0.1) == ["b"]


def test_costs_are_those_of_the_convolution():
    import torch

    costs = count_costs(nn.Conv3d(2, 3, 3, padding=1, bias=False), torch.zeros(1, 2, 8, 8, 8))
    assert costs.parameters == 2 * 3 * 27
    assert costs.flops == 2 * 2 * 3 * 27 * 512
    assert costs.bytes_moved == 4 * (2 * 512 + 2 * 3 * 27 + 3 * 512)


def test_windows_cover_the_volume_and_heavy_networks_are_timed_on_a_part():
    by_name = {baseline.name: baseline for baseline in BASELINES}
    assert by_name["SwinUNETR 48"].runs((192, 192, 96)) == 9
    assert by_name["DDPM UNet"].runs((192, 192, 96)) == 250
    unet = by_name["UNet 16-256"]
    assert unet.input_shape((240, 240, 155)) == (240, 240, 160)
    assert unet.timed_shape((192, 192, 96), 1e12, full=False) == (192, 192, 32)
    assert unet.timed_shape((192, 192, 96), 1e12, full=True) == (192, 192, 96)
    with pytest.raises(BackendError, match="no such baseline"):
        choose_baselines(["UNet"])


def _small(name, channels):
    return Baseline(name, "task peer", lambda shape: FullResolutionAutoencoder(channels), 4)


SMALL = (_small("narrow", (1, 2)), _small("wide", (2, 4)))


@pytest.fixture
def plan(tmp_path, tiny_bundle, tiny_detector, monkeypatch):
    bundle = load_bundle(tiny_bundle)
    # Those of the compact model, which this tiny one is not.
    monkeypatch.setattr(latency_module, "slice_costs", lambda name, work: Costs(1, 1.0, 1.0))
    scan = make_scan(tmp_path, (192, 192, 96))
    model = SliceModel("compact", bundle, tiny_detector)

    def make(*engines, baselines=SMALL):
        return LatencyPlan(scan, [model], baselines, choose_engines(engines), 1, 3, tmp_path)

    return make


def test_both_sides_run_in_the_same_engine_and_the_claim_is_a_ratio(plan):
    chosen = plan("onnxruntime")
    rows = list(measure_latency(chosen, Clock(None, count_blocks(chosen))))
    assert [row.get("problem") for row in rows] == [None] * 3
    by_name = {row["method"]: row for row in rows}
    assert set(by_name) == {"narrow", "wide", "compact"}
    ours, theirs = by_name["compact"], by_name["wide"]
    assert set(ours["stages_ms"]) == {"read", "prepare", "encoder", "flow", "map", "write"}
    assert theirs["file"]["median_ms"] > theirs["net"]["median_ms"]
    medians = [np.median(row["net_samples_ms"]) for row in (theirs, ours)]
    assert theirs["against"]["compact"]["net"]["value"] == pytest.approx(medians[0] / medians[1], rel=0.01)
    results = {"latency": {"environment": {}, "rows": rows}}
    value = theirs["against"]["compact"]["net"]
    easy = check_claim(results, "compact", ratio=value["low"] / 2, memory_ratio=1, against=["wide"])
    hard = check_claim(results, "compact", ratio=value["high"] * 2, memory_ratio=1, against=["wide"])
    assert holds(easy, ["net"])
    assert not holds(hard, ["net"])


def test_a_network_that_an_engine_refuses_is_recorded_and_the_others_go_on(plan):
    class Refused(nn.Module):
        def forward(self, volume):
            raise RuntimeError("no such operator")

    broken = Baseline("broken", "ceiling", lambda shape: Refused(), 4)
    chosen = plan("torch", baselines=(broken, _small("narrow", (1, 2))))
    rows = list(measure_latency(chosen, Clock(None, count_blocks(chosen))))
    by_name = {row["method"]: row for row in rows}
    assert "no such operator" in by_name["broken"]["problem"]
    assert by_name["narrow"]["net"]["rounds"] == 3


class FailsLater(nn.Module):
    """Runs once, and is out of memory from then on."""

    ran = False

    def forward(self, volume):
        if self.ran:
            raise RuntimeError("out\nof memory")
        self.ran = True
        return volume


def test_a_network_that_fails_in_a_timed_round_is_recorded_and_the_others_go_on(plan):
    chosen = plan("torch", baselines=(Baseline("later", "ceiling", lambda shape: FailsLater(), 4), *SMALL))
    by_name = {row["method"]: row for row in measure_latency(chosen, Clock(None, count_blocks(chosen)))}
    assert by_name["later"]["problem"] == "RuntimeError: out of memory"
    assert set(by_name["later"]) == {"engine", "method", "group", "problem"}
    for name in ("narrow", "wide"):
        assert by_name[name]["net"]["rounds"] >= 3
    assert by_name["compact"]["net"]["rounds"] == by_name["wide"]["net"]["rounds"]


def test_an_engine_whose_slice_pipeline_fails_is_recorded_and_the_others_go_on(plan, monkeypatch):
    honest = latency_module.open_slices

    def fails(engine, *given):
        if engine.kind == "torch":
            raise RuntimeError("out of memory")
        return honest(engine, *given)

    monkeypatch.setattr(latency_module, "open_slices", fails)
    chosen = plan("torch", "onnxruntime", baselines=SMALL[:1])
    first, *others = measure_latency(chosen, Clock(None, count_blocks(chosen)))
    assert first == {"engine": "torch", "problem": "RuntimeError: out of memory"}
    assert {row["method"] for row in others} == {"narrow", "compact"}


def test_an_undecided_block_is_repeated_while_its_time_lasts_and_three_times_at_most(plan, monkeypatch):
    chosen = plan("onnxruntime", baselines=SMALL[:1])

    def rounds(minutes, answers):
        left = iter(answers)
        monkeypatch.setattr(latency_module, "_undecided", lambda rows, decides: next(left))
        rows = list(measure_latency(chosen, Clock(minutes, count_blocks(chosen))))
        return [row["net"]["rounds"] for row in rows]

    assert rounds(None, [["narrow"], []]) == [6, 6]
    assert rounds(None, [["narrow"]] * 3) == [9, 9]
    assert rounds(0.0, [["narrow"]]) == [3, 3]


def test_what_is_undecided_is_said_of_time_and_of_each_slice_pipeline():
    far, near = {"value": 5.0, "low": 4.0, "high": 6.0}, {"value": 3.3, "low": 3.0, "high": 3.6}
    rows = [
        {
            "method": "a",
            "against": {"compact": {"net": far, "file": far}, "wide_resnet50_2": {"net": far, "file": near}},
        },
        {"method": "b", "against": {"compact": {"net": far, "file": far}}},
    ]
    assert _undecided(rows, 3.3) == ["a"]
    assert _undecided(rows, 5.0) == ["a", "b"]


def test_networks_are_timed_by_slices_beside_the_slice_pipeline(tmp_path, thick_bundle):
    bundle = load_bundle(thick_bundle)
    scan = make_scan(tmp_path, (192, 192, 96))
    found = measure_slices(scan, bundle, SMALL[:1], tmp_path, counts=(6, 48, 480), rounds=3, threads=1)
    assert set(found) == {"thick", "narrow"}
    assert [row["slices"] for row in found["narrow"]] == [row["slices"] for row in found["thick"]] == [6, 48]


def test_a_bundle_that_was_cut_off_is_made_anew(tmp_path, tiny_bundle, monkeypatch):
    def make(name, folder, scan, *, cut_off):
        shutil.copytree(tiny_bundle, folder)
        if cut_off:  # between its two exports
            raise KeyboardInterrupt
        return None, load_bundle(folder)

    monkeypatch.setattr(contenders, "make_bundle", partial(make, cut_off=True))
    with pytest.raises(KeyboardInterrupt):
        contenders.slice_bundle("wide_resnet50_2", tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(contenders, "make_bundle", partial(make, cut_off=False))
    assert contenders.slice_bundle("wide_resnet50_2", tmp_path, tmp_path).folder == tmp_path / "wide_resnet50_2"
    assert [path.name for path in tmp_path.iterdir()] == ["wide_resnet50_2"]


@pytest.mark.parametrize("shape", [(192, 192, 96), (96, 96, 96)])
def test_no_array_of_the_harness_lies_beside_the_network_that_runs(tmp_path, monkeypatch, shape):
    scan, taken = make_scan(tmp_path, (192, 192, 96)), []

    def run(volume):
        taken.append(tracemalloc.get_traced_memory()[0] / (192 * 192 * 96 * 4))
        return volume

    monkeypatch.setattr(one_volume, "open_graph", lambda *given: run)
    tracemalloc.start()
    try:
        one_volume.run_job(one_volume.Job("onnxruntime", 1, str(scan.path), str(tmp_path), graph="a", shape=shape))
    finally:
        tracemalloc.stop()
    assert taken[0] < 2.5, "the volume, and the network's input"
    assert {"anomaly.nii.gz", "mask.nii.gz"} <= {path.name for path in tmp_path.iterdir()}


def test_the_commit_is_that_of_this_tree_and_of_none_around_it(tmp_path):
    inside = tmp_path / "environment"
    inside.mkdir()
    for arguments in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "theirs")):
        settings = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *settings, *arguments], cwd=tmp_path, check=True)
    assert measure_module._commit(tmp_path)
    assert measure_module._commit(inside) is None


def test_accuracy_is_that_of_what_runs(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    bundle.manifest["accuracy"] = {"all": {"auroc": 0.9}}
    engines = choose_engines(["onnxruntime", "openvino", "openvino bf16", "torch"])
    assert [known_accuracy(engine, bundle) for engine in engines] == [{"auroc": 0.9}, {"auroc": 0.9}, None, None]
    del bundle.manifest["accuracy"]
    assert known_accuracy(engines[0], bundle) is None
