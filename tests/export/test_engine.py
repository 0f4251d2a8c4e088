"""Engines built for real, ahead of time, by TensorRT-RTX without a GPU; and what is said where none can be built."""

import builtins
import json
import shutil
import subprocess
import sys
from unittest.mock import Mock

import pytest
from brains import brain_file
from graphs import graph, middle, plant_overflow, with_changed_flow
from onnx import helper
from typer.testing import CliRunner

from ssn.cli.export import app
from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, load_bundle
from ssn.core.engine_record import ENCODER_ENGINE, FLOW_ENGINE, Device
from ssn.core.engines import find_engines, read_engine, refusal
from ssn.core.errors import BackendError, ExportError, OutputError
from ssn.export.build import BuildOptions, build_engines
from ssn.export.check import ways
from ssn.export.engine import Target, build_engine, choose_target, load_builder
from ssn.export.parity import prepare

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
ADA = Device("NVIDIA RTX 4090", "89", "580.65", 24 * 2**30)


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return load_bundle(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def sample(bundle, tmp_path):
    return middle(prepare(bundle, brain_file(tmp_path / "scan.nii.gz", zooms=(4.0, 4.0, 6.0))), 4)


def build(bundle, sample, overwrite=False, **options):
    return build_engines(bundle, [sample], BuildOptions(**options), device=None, overwrite=overwrite)


def test_engines_are_built_without_a_gpu_and_read_back(bundle, sample):
    steps = []
    folder, record = build_engines(
        bundle, [sample], BuildOptions(max_batch=24), device=None, report=lambda what, step, of: steps.append(what)
    )
    (entry,) = find_engines(bundle)
    assert entry.folder == folder
    assert entry.record.key == record.key
    assert (record.key.gpu, record.key.compute_capability, record.key.max_windows) == ("any", "80+", 8)
    for name in (ENCODER_ENGINE, FLOW_ENGINE):
        assert len(read_engine(entry, name)) > 100_000
    assert any(step.startswith("flow.onnx: ") for step in steps), "the builder reports its phases"


def test_the_record_says_what_was_built_from_what_and_how_far_it_drifts(bundle, sample):
    folder, _ = build(bundle, sample)
    stored = json.loads((folder / "record.json").read_text())
    assert stored["onnx"] == {name: bundle.manifest["files"][name]["sha256"] for name in (ENCODER_FILE, FLOW_FILE)}
    tensors = {t["name"]: t["dtype"] for engine in (*stored["inputs"].values(),) for t in engine}
    assert tensors == {"slices": "float16", "features": "float16", "places": "int64", "first": "int64"}
    (likelihood,) = stored["outputs"][FLOW_ENGINE]
    assert (likelihood["name"], likelihood["dtype"], likelihood["shape"]) == ("log_likelihood", "float32", [-1])
    about = stored["build"]
    assert 0 < about["drift"]["log_likelihood"] <= about["tolerance"]["log_likelihood"]
    assert about["measured_on"][0]["name"] == "scan.nii.gz"
    assert about["engines"][ENCODER_ENGINE]["layers"]["CONVOLUTION"] > 5
    assert about["engines"][ENCODER_ENGINE]["shapes"]["slices"][0] == [3, 1, 192, 192]
    assert str(bundle.folder.parent) not in json.dumps(stored), "folders can name patients"


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("int8", "float16")])
def test_every_precision_is_built(bundle, sample, precision, dtype):
    _, record = build(bundle, sample, precision=precision)
    assert record.outputs[ENCODER_ENGINE][0].dtype == record.inputs[FLOW_ENGINE][0].dtype == dtype
    assert {entry.record.key.precision for entry in find_engines(bundle)} == {precision}


def test_engines_for_one_kind_of_gpu_are_refused_on_another(bundle, sample):
    _, record = build(bundle, sample, target="sm86", precision="fp32")
    found = refusal(record, bundle, ADA, "tensorrt_rtx", rtx.__version__)
    assert "compute capability 86" in found
    assert f"ssn-export build-engine {bundle.folder} --precision fp32" in found


def test_what_overflows_is_kept_in_single_precision_and_on_record(bundle, sample, tmp_path):
    planted = with_changed_flow(bundle, tmp_path / "planted", plant_overflow)
    _, record = build(planted, sample)
    assert record.build["kept_in_fp32"] == {ENCODER_FILE: [], FLOW_FILE: ["planted_down", "planted_up"]}
    assert record.build["engines"][FLOW_ENGINE]["layer_types"]["HALF"] > 20, "and nothing else"
    (half,) = (way for way in ways(planted) if way.name == "fp16 graph, rounded on cpu")
    assert half.remark is None, "an engine computes it, so check holds it to its tolerance"


def test_the_same_engines_are_not_replaced_unasked(bundle, sample):
    folder, _ = build(bundle, sample, precision="fp32")
    before = (folder / "record.json").read_bytes()
    with pytest.raises(OutputError, match="--force"):
        build(bundle, sample, precision="fp32")
    assert (folder / "record.json").read_bytes() == before
    build(bundle, sample, precision="fp32", overwrite=True)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_interrupted_build_leaves_nothing(bundle, sample):
    def interrupt(what, step, steps):
        if what.startswith("flow.onnx: "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, [sample], BuildOptions("fp32"), device=None, report=interrupt)
    assert not (bundle.folder / "engines").exists()


def test_a_graph_that_tensorrt_does_not_take_is_one_line(bundle):
    node = helper.make_node("StringNormalizer", ["x"], ["y"], name="n")
    model = graph([helper.make_node("Relu", ["x"], ["y"], name="r")], {}, {"x": [3]}, {"y": [3]})
    model.graph.node[0].CopyFrom(node)
    target = choose_target(rtx, "any", None)
    with pytest.raises(ExportError, match=r"^odd.onnx: tensorrt_rtx .* does not take the graph") as caught:
        build_engine(rtx, model.SerializeToString(), {}, target, name="odd.onnx")
    assert len(str(caught.value).splitlines()) == 1


def test_a_timing_cache_that_is_refused_is_done_without(monkeypatch):
    honest, given = rtx.IBuilderConfig.set_timing_cache, []

    def only_an_empty_one(config, cache, ignore_mismatch):
        given.append(cache)
        return len(given) > 1 and honest(config, cache, ignore_mismatch)

    monkeypatch.setattr(rtx, "__name__", "tensorrt")  # the other one has the calls as well, and uses no cache
    monkeypatch.setattr(rtx.IBuilderConfig, "set_timing_cache", only_an_empty_one)
    model = graph([helper.make_node("Relu", ["x"], ["y"], name="r")], {}, {"x": [3]}, {"y": [3]})
    target = Target("any", "80+", None)
    assert build_engine(rtx, model.SerializeToString(), {}, target, name="one.onnx", timing_cache=b"of another").data
    assert len(given) == 2


@pytest.mark.parametrize("wanted", ["sm90", "gpu", "current"])
def test_a_target_that_cannot_be_built_for_is_refused(wanted):
    with pytest.raises(BackendError, match=rf"--target {wanted}"):
        choose_target(rtx, wanted, None)


def test_missing_tensorrt_is_one_line_with_both_commands(bundle, tmp_path, monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    for device in (None, ADA):
        with pytest.raises(BackendError, match=r"pip install tensorrt-rtx .*pip install tensorrt$"):
            load_builder(device)
    scan = brain_file(tmp_path / "scan.nii.gz", zooms=(4.0, 4.0, 6.0))
    result = CliRunner().invoke(app, ["build-engine", str(bundle.folder), "--volume", str(scan)])
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (bundle.folder / "engines").exists()


def test_a_tensorrt_that_fails_without_a_word_is_told_by_its_error(monkeypatch):
    monkeypatch.setattr("importlib.import_module", Mock(side_effect=OSError))
    with pytest.raises(BackendError, match=r"tensorrt_rtx: OSError\)"):
        load_builder(None)


def test_a_missing_onnx_package_is_one_line(bundle, monkeypatch):
    honest = builtins.__import__

    def without_onnx(name, *rest):
        if name.split(".")[0] == "onnx":
            raise ModuleNotFoundError("No module named 'onnx'", name="onnx")
        return honest(name, *rest)

    for name in [m for m in sys.modules if m.startswith("ssn.export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_onnx)
    result = CliRunner().invoke(app, ["check", str(bundle.folder)])
    assert result.exit_code == 1
    assert result.stderr == "Error: the onnx package is needed and not installed; pip install onnx\n"


def test_building_and_checking_need_no_torch():
    script = (
        "import sys, ssn.export.build, ssn.export.check, ssn.export.int8; "
        "print([m for m in ('torch', 'timm', 'FrEIA') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_build_engine_and_inspect_work_from_the_command_line(bundle, tmp_path):
    scan = brain_file(tmp_path / "scan.nii.gz", zooms=(4.0, 4.0, 6.0))
    arguments = ["build-engine", str(bundle.folder), "--volume", str(scan), "--max-batch", "6", "--workspace", "64"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "nodes kept in FP32" in result.stdout
    (entry,) = find_engines(bundle)
    assert entry.record.key.max_windows == 2
    listed = CliRunner().invoke(app, ["inspect", str(bundle.folder)])
    assert listed.exit_code == 0
    assert "hashes verified" in listed.stdout
