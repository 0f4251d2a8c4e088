"""Comparing with 3D networks: the arithmetic of ratios, small real comparisons, the claim, and the report."""

import json

import numpy as np
import pytest
from torch import nn
from typer.testing import CliRunner

import ssn.benchmarks.latency as latency_module
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
from ssn.cli.bench import app
from ssn.core.bundle import load_bundle
from ssn.core.errors import BackendError, ResultsError


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_ratio_is_undecided_when_its_interval_includes_what_was_asked():
    assert Ratio(4.0, 3.5, 4.5).verdict(3.3) == "holds"
    assert Ratio(3.0, 2.5, 3.2).verdict(3.3) == "does not hold"
    assert Ratio(3.4, 3.1, 3.6).verdict(3.3) == "undecided"


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


def test_accuracy_is_that_of_what_runs(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    bundle.manifest["accuracy"] = {"all": {"auroc": 0.9}}
    engines = choose_engines(["onnxruntime", "openvino", "openvino bf16", "torch"])
    assert [known_accuracy(engine, bundle) for engine in engines] == [{"auroc": 0.9}, {"auroc": 0.9}, None, None]
    del bundle.manifest["accuracy"]
    assert known_accuracy(engines[0], bundle) is None


def _row(method, group, **more):
    times = {"median_ms": 900.0, "p90_ms": 950.0, "p99_ms": 990.0, "rounds": 5}
    costs = {"parameters": 1e6, "flops": 1e11, "bytes_moved": 1e9}
    return {
        "engine": "onnxruntime",
        "method": method,
        "group": group,
        "net": times,
        "file": times,
        "costs": costs,
        **more,
    }


@pytest.fixture
def results(tmp_path):
    ratio = {"value": 5.0, "low": 4.0, "high": 6.0}
    near = {"value": 3.3, "low": 3.0, "high": 3.6}
    times = {"median_ms": 900.0}
    rows = [
        _row(
            "compact",
            "slice pipeline",
            accuracy={"auroc": 0.951, "auprc": 0.512, "dice": 0.4},
            stages_ms={"read": 90.0, "encoder": 500.0, "flow": 200.0, "map": 50.0},
        ),
        _row("VQVAE", "task peer", against={"compact": {"net": ratio, "file": ratio}}),
        _row("UNet <16>", "ceiling", against={"compact": {"net": near, "file": near}}),
        {"engine": "onnxruntime", "method": "DDPM", "group": "task peer", "once_ms": 9e6},
        {"engine": "openvino", "problem": "openvino is not installed"},
    ]
    environment = {"cpu": "a CPU", "cores": 2, "commit": "abc", "threads": 2}
    latency = {"kind": "latency", "environment": environment, "fp32_matmul_gflops": 150.0, "rows": rows}
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "latency.json").write_text(json.dumps(latency))
    step = {
        "step": "8-bit encoder",
        "before": times,
        "after": times,
        "faster": ratio,
        "map_correlation": 0.5,
        "largest_map_difference_z": 9.0,
        "volume_score_before": 4.0,
        "volume_score_after": 9.0,
    }
    (folder / "variants.json").write_text(json.dumps({"environment": environment, "rows": [step]}))
    cohort = {
        "method": "compact",
        "volumes": 2,
        "volumes_a_minute": 30.0,
        "slowest": "compute",
        "samples_s": {"decode": [0.1], "compute": [3.0], "write": [0.2], "all": [4.0]},
        "efficiency": {"value": 0.75, "low": 0.7, "high": 0.8},
        "one_after_another": {"value": 0.9, "low": 0.8, "high": 1.0},
        "cpu_s": 7.0,
        "cores": 2,
        "at_once": 2,
        "efficiency_at_once": {"value": 0.85, "low": 0.8, "high": 0.9},
        "slices": [{"slices": count, "median_ms": 10.0 * count} for count in (24, 48)],
        "slices_3d": {"AutoEncoder": [{"slices": count, "median_ms": 5.0 * count} for count in (24, 48)]},
    }
    (folder / "throughput.json").write_text(json.dumps({"environment": environment, "rows": [cohort]}))
    return folder


def test_the_claim_ends_with_0_only_when_it_holds_for_what_was_stated(results):
    assert invoke("claim", results, "--against", "VQVAE").exit_code == 0
    assert invoke("claim", results, "--against", "VQVAE", "--ratio", "5").exit_code == 1
    undecided = invoke("claim", results, "--against", "UNet <16>")
    assert undecided.exit_code == 1
    assert "undecided" in undecided.stdout
    everything = invoke("claim", results)
    assert everything.exit_code == 1
    assert "timed once, 9000.0 s a volume" in everything.stdout


def test_a_claim_about_what_was_not_measured_is_one_clear_line(results, tmp_path):
    for arguments, said in (
        ((results, "--against", "SegResNet"), "SegResNet: no such baseline"),
        ((results, "--against", "VQVAE", "--engine", "bogus"), "bogus: no such engine in the results; there are: onnx"),
        ((tmp_path / "nowhere",), "holds none of"),
    ):
        result = invoke("claim", *arguments)
        assert result.exit_code == 1
        assert len(result.stderr.strip().splitlines()) == 1
        assert said in result.stderr


def test_accuracy_of_another_command_is_one_clear_line(results, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"threshold": 1.0, "summary": {"all": {}}, "volumes": []}))
    for command in ("report", "performance"):
        result = invoke(command, results, "-o", tmp_path / "page.md", "--accuracy", tmp_path / "a.json")
        assert result.exit_code == 1
        assert "a.json: is that of ssn-train evaluate; give the JSON of ssn-bench accuracy" in result.stderr
    assert not (tmp_path / "page.md").exists()


def test_what_was_measured_but_not_together_is_one_clear_line(results):
    rows = json.loads((results / "latency.json").read_text())
    rows["rows"].append(rows["rows"][1] | {"engine": "torch", "method": "SwinUNETR"})
    (results / "latency.json").write_text(json.dumps(rows))
    result = invoke("claim", results, "--against", "VQVAE", "--against", "SwinUNETR", "--engine", "torch")
    assert result.exit_code == 1
    assert "VQVAE: not measured with" in result.stderr


def test_a_damaged_result_is_refused(results):
    (results / "latency.json").write_text("{")
    with pytest.raises(ResultsError, match="cannot be read"):
        from ssn.benchmarks.results import load_results

        load_results(results)


def test_the_report_is_one_file_with_charts_escaped_names_and_the_raw_data(results, tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "report.html"
    assert invoke("report", results, "-o", page).exit_code == 0
    text = page.read_text()
    assert text.count("<svg") == 4
    assert "UNet &lt;16&gt;" in text
    assert "http" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    start = text.index('id="results">') + len('id="results">')
    raw = json.loads(text[start : text.index("</script>", start)])
    assert raw["latency"]["rows"][1]["method"] == "VQVAE"
    assert invoke("report", results, "-o", page).exit_code == 1


def test_accuracy_stands_beside_speed_and_what_drops_it_is_marked(results, tmp_path):
    def shown(page):
        return page.read_text().split("<details>")[0]  # without the raw data

    for command, page in (("report", tmp_path / "report.md"), ("performance", tmp_path / "performance.md")):
        assert invoke(command, results, "-o", page).exit_code == 0
        text = shown(page)
        (step,) = [line for line in text.splitlines() if line.startswith("| 8-bit encoder")]
        assert "drops accuracy" in step
        assert "0.951" in text
        measured = tmp_path / "accuracy.json"
        summary = {"all": {"auroc": 0.888, "auprc": 0.4, "dice": 0.3}}
        measured.write_text(json.dumps({"ssn": {"summary": summary}, "UNet <16>": {"summary": summary}}))
        assert invoke(command, results, "-o", page, "--accuracy", measured, "--force").exit_code == 0
        assert "0.951" not in shown(page)
        assert "0.888" in shown(page)


def test_a_cohort_says_whether_it_reaches_its_goal_and_what_limits_it(results, tmp_path):
    assert invoke("performance", results, "-o", tmp_path / "performance.md").exit_code == 0
    text = (tmp_path / "performance.md").read_text()
    limits = "cores: 7.00 s of CPU on 2 take 3.50 s, compute 3.00"
    assert f"| compute | 75 % [70, 80] | does not hold | 2: 85 % [80, 90] | {limits} |" in text


def test_markdown_needs_no_charts_and_the_page_of_steps_names_its_commit(results, tmp_path):
    assert invoke("report", results, "-o", tmp_path / "report.md").exit_code == 0
    assert "| VQVAE | onnxruntime | 5.00x [4.00, 6.00]: holds" in (tmp_path / "report.md").read_text()
    assert invoke("performance", results, "-o", tmp_path / "performance.md").exit_code == 0
    assert "commit abc" in (tmp_path / "performance.md").read_text()
