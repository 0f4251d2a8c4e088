"""The page of a GPU's results: what it says is what was measured."""

import json
import shutil
from pathlib import Path

from typer.testing import CliRunner

from ssn.benchmarks.pages.gpu import best_device_ms, chart_rows, read_gpu_results
from ssn.cli.bench import app

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu-nvidia-h100"


def page(folder, output):
    return CliRunner().invoke(app, ["gpu-page", str(folder), "-o", str(output)])


def test_the_committed_page_is_made_from_the_committed_results(tmp_path):
    output = tmp_path / "performance-gpu.md"
    assert page(RESULTS, output).exit_code == 0
    assert output.read_text() == (RESULTS.parents[2] / "docs" / output.name).read_text()
    assert output.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    again = page(RESULTS, output)
    assert again.exit_code == 1
    assert "--force" in again.stderr


def test_the_best_way_is_the_shortest_device_time_and_ratios_are_against_it():
    results = read_gpu_results(RESULTS)
    wide = results.models["wide_resnet50_2"]
    ms, how = best_device_ms(wide)
    found = {"fused: 96 slices a batch": wide["pipeline_by_batch"]["96"]["device_ms"]}
    assert ms == found[how]["encoder"] + found[how]["flow"]
    times = {row["method"]: row["ms"] for row in chart_rows(results)}
    assert times["wide_resnet50_2"] == ms
    assert times["DynUNet nnU-Net"] == results.networks["DynUNet nnU-Net"]["best_ms"]


def test_what_was_not_measured_is_left_out_or_said(tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(RESULTS, folder)
    for other in folder.glob("gpu-compact-*.json"):
        other.unlink()
    compact = json.loads((folder / "gpu-compact.json").read_text())
    model = compact["models"]["compact"]
    del model["pipeline_over_torch"], model["pipeline_by_batch"]
    model["onnxruntime_cuda"] = {"problem": "no CUDAExecutionProvider"}
    (folder / "gpu-compact.json").write_text(json.dumps(compact))
    networks = json.loads((folder / "gpu-networks-3d.json").read_text())
    networks["networks"]["VQVAE"] = {"problem": "out of memory"}
    (folder / "gpu-networks-3d.json").write_text(json.dumps(networks))
    assert page(folder, tmp_path / "page.md").exit_code == 0
    text = (tmp_path / "page.md").read_text()
    assert "| ONNX Runtime, CUDA, FP32 | no CUDAExecutionProvider | - |" in text
    assert "VQVAE" not in text
    assert "| eager, ms | compiled, ms | wide_resnet50_2 |" in text


def test_memory_and_the_way_from_the_file_are_on_the_page_where_they_were_measured(tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(RESULTS, folder)
    wide = json.loads((folder / "gpu-wide_resnet50_2.json").read_text())
    model = wide["models"]["wide_resnet50_2"]
    way = {"volume": {"median_ms": 71.0}, "stages_ms": {"read": 20.0, "prepare": 31.0, "copy_in": 0.4}}
    model["pipeline_over_torch"]["compiled"]["end_to_end"] = way
    model["pipeline_by_batch"]["48"]["peak_memory_mb"] = {"1": 812.4, "4": 813.1}
    model["onnxruntime_cuda_fp16_tensor_cores"] = {**model["onnxruntime_cuda"], "peak_memory_mb": 432.1}
    (folder / "gpu-wide_resnet50_2.json").write_text(json.dumps(wide))
    assert page(folder, tmp_path / "page.md").exit_code == 0
    text = (tmp_path / "page.md").read_text()
    assert "From file to map it takes 71 ms (read 20, prepare 31)." in text
    assert " 812 MB with 48 slices a batch (813 MB for four volumes in a row)" in text
    assert "ONNX Runtime, CUDA, FP16 takes 432 MB of the GPU" in text
    assert "| ONNX Runtime, CUDA, FP16 |" in text


def test_times_are_held_against_the_matmul_rate(tmp_path):
    environment = json.loads((RESULTS / "gpu-compact.json").read_text())["environment"]
    row = {"volume": {"median_ms": 10.0, "low_ms": 9.0, "high_ms": 11.0}}
    stages = {"copy_in": 1.0, "encoder": 1.5, "flow": 0.5, "copy_out": 1.0}
    model = {
        "flops": {"volume": 1e12},
        "torch": {"eager": row, "compiled": {"problem": "no compiler"}},
        "pipeline_over_torch": {"compiled": {"variants": {"graphs": {**row, "device_ms": stages}}}},
    }

    def text(rate):
        found = {"environment": environment, "fp16_matmul_tflops": rate, "models": {"compact": model}}
        (tmp_path / "gpu-compact.json").write_text(json.dumps(found))
        assert (
            CliRunner().invoke(app, ["gpu-page", str(tmp_path), "-o", str(tmp_path / "p.md"), "--force"]).exit_code == 0
        )
        return (tmp_path / "p.md").read_text()

    lines = text(1000.0).splitlines()
    assert next(line for line in lines if "eager" in line).endswith("| 10.0 % |")
    assert next(line for line in lines if "CUDA pipeline, compiled: graphs |" in line).endswith("| 50.0 % |")
    assert next(line for line in lines if "no compiler" in line).endswith("| - |")
    assert "The shortest device time is 2.00 ms (compiled: graphs), 2.00 times that." in text(1000.0)
    assert " %" not in text({"problem": "out of memory"})


def test_files_of_one_model_are_read_as_one(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    whole = json.loads((RESULTS / "gpu-compact.json").read_text())
    for name, part in (("gpu-compact-a.json", "torch"), ("gpu-compact-b.json", "pipeline_over_torch")):
        found = {**whole, "models": {"compact": {part: whole["models"]["compact"][part]}}}
        (folder / name).write_text(json.dumps(found))
    assert {"torch", "pipeline_over_torch"} <= set(read_gpu_results(folder).models["compact"])


def test_a_page_without_a_time_or_named_as_a_picture_is_refused_and_nothing_is_written(tmp_path):
    environment = {"gpu": {"name": "a GPU", "driver": "1"}, "cpu": "a CPU", "cores": 2, "packages": {}}
    found = {"environment": environment, "models": {"compact": {"onnxruntime_cuda": {"problem": "no GPU"}}}}
    (tmp_path / "gpu-compact.json").write_text(json.dumps(found))
    for output, said in (("page.md", "its results are incomplete"), ("page.png", "end the name in .md")):
        result = CliRunner().invoke(app, ["gpu-page", str(tmp_path), "-o", str(tmp_path / output)])
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert said in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-compact.json"]


def test_folders_of_nothing_or_of_two_gpus_are_refused(tmp_path):
    assert "holds no gpu-*.json" in page(tmp_path, tmp_path / "page.md").stderr
    for name in ("one", "other"):
        environment = {"gpu": {"name": name}, "packages": {}}
        (tmp_path / f"gpu-{name}.json").write_text(json.dumps({"environment": environment, "models": {}}))
    result = page(tmp_path, tmp_path / "page.md")
    assert result.exit_code == 1
    assert "holds results of one, other" in result.stderr
    (tmp_path / "gpu-one.json").write_text('{"environment": {}}')
    assert "gpu-one.json: is no result of scripts/gpu_suite" in page(tmp_path, tmp_path / "page.md").stderr
