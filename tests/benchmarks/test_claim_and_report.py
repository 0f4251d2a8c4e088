"""The claim and the report, from results on disk."""

import json
from functools import partial

import pytest
from commands import run

from ssn.benchmarks.measure import Ratio
from ssn.cli.bench import app
from ssn.core.errors import ResultsError

invoke = partial(run, app)


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


RATIO = {"value": 5.0, "low": 4.0, "high": 6.0}


@pytest.fixture
def results(tmp_path):
    ratio = RATIO
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


def test_a_claim_holds_of_nothing_that_was_not_measured(results):
    for arguments, said in (
        (("--of", "memory"), "memory (all): was not measured"),
        (("--against", "VQVAE", "--of", "memory"), "memory (all): was not measured"),
    ):
        result = invoke("claim", results, *arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"Error: {said}")
        assert "The claim" not in result.stdout
    rows = {"environment": {}, "rows": [_row("UNet <16>", "ceiling", against={"compact": {"memory": RATIO}})]}
    (results / "memory.json").write_text(json.dumps(rows))
    both = ("--against", "VQVAE", "--against", "UNet <16>", "--of", "memory")
    for arguments in (both, both[:4], ()):
        result = invoke("claim", results, *arguments)
        assert result.exit_code == 1
        assert "memory (VQVAE in onnxruntime" in result.stderr, "it was timed"
    measured = ("--against", "UNet <16>", "--of", "memory")
    assert invoke("claim", results, *measured).exit_code == 0
    assert invoke("claim", results, *measured, "--ratio", "9").exit_code == 0, "memory has a ratio of its own"
    assert invoke("claim", results, *measured, "--memory-ratio", "5").exit_code == 1


def test_a_claim_does_not_hold_of_a_slice_pipeline_alone(results):
    found = json.loads((results / "latency.json").read_text())
    (results / "latency.json").write_text(json.dumps(found | {"rows": found["rows"][:1]}))
    result = invoke("claim", results)
    assert result.exit_code == 1
    assert "the results hold no comparison" in result.stderr


def test_a_claim_is_about_each_named_network_in_each_named_engine(results):
    found = json.loads((results / "latency.json").read_text())
    row = found["rows"][1]
    found["rows"] += [row | {"engine": "torch"}, row | {"method": "SegResNet"}]
    (results / "latency.json").write_text(json.dumps(found))
    networks = ("--against", "VQVAE", "--against", "SegResNet")
    for of in (("--of", "net"), ()):
        result = invoke("claim", results, *networks, "--engine", "onnxruntime", "--engine", "torch", *of)
        assert result.exit_code == 1
        assert result.stderr.strip().startswith("Error: net (SegResNet in torch): was not measured")
    assert invoke("claim", results, *networks, "--engine", "onnxruntime").exit_code == 0


def test_a_problem_is_printed_as_it_is(results):
    rows = json.loads((results / "latency.json").read_text())
    rows["rows"][3] = rows["rows"][3] | {"problem": "cannot open [/opt/x/libfoo.so] [enforce fail]"}
    del rows["rows"][3]["once_ms"]
    (results / "latency.json").write_text(json.dumps(rows))
    assert "[/opt/x/libfoo.so]" in invoke("claim", results).stdout


@pytest.mark.parametrize("command", ["claim", "report", "performance"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda found: found.update(rows=None),
        lambda found: found["rows"][1].pop("method"),
        lambda found: found["rows"][1]["against"]["compact"]["net"].pop("low"),
    ],
)
def test_a_result_with_something_missing_is_one_clear_line(results, tmp_path, command, damage):
    found = json.loads((results / "latency.json").read_text())
    damage(found)
    (results / "latency.json").write_text(json.dumps(found))
    written = ("-o", tmp_path / "page.md") if command != "claim" else ()
    result = invoke(command, results, *written)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert f"{results}: its results are incomplete, damaged or of another version" in result.stderr
    assert not (tmp_path / "page.md").exists()


def test_a_ratio_that_is_no_number_decides_nothing():
    assert Ratio(float("nan"), float("nan"), float("nan")).verdict(3.3) == "undecided"


def test_a_damaged_result_is_refused(results):
    (results / "latency.json").write_text("{")
    with pytest.raises(ResultsError, match="cannot be read"):
        from ssn.benchmarks.results import load_results

        load_results(results)


def test_a_result_that_was_cut_off_before_its_first_row_makes_no_empty_page(results, tmp_path):
    found = json.loads((results / "latency.json").read_text())
    (results / "latency.json").write_text(json.dumps(found | {"rows": []}))
    result = invoke("report", results, "-o", tmp_path / "page.html")
    assert result.exit_code == 1
    assert "latency.json: was cut off before anything was measured; measure it again" in result.stderr
    assert not (tmp_path / "page.html").exists()


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


def test_memory_that_was_measured_in_one_engine_alone_is_a_claim_about_that_one(results):
    rows = json.loads((results / "latency.json").read_text())["rows"]
    memory = [
        _row(one["method"], one["group"], against={"compact": {"memory": RATIO}}) for one in rows if "group" in one
    ]
    (results / "memory.json").write_text(json.dumps({"environment": {}, "rows": memory}))
    rows += [one | {"engine": "torch"} for one in rows if one.get("method") == "VQVAE"]
    (results / "latency.json").write_text(json.dumps({"environment": {}, "rows": rows}))
    assert invoke("claim", results, "--against", "VQVAE").exit_code == 0
    stated = invoke("claim", results, "--against", "VQVAE", "--engine", "torch", "--engine", "onnxruntime")
    assert "memory (VQVAE in torch): was not measured" in stated.stderr
