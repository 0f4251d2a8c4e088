import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, load_bundle
from ssn.core.engine_record import (
    ENCODER_ENGINE,
    FLOW_ENGINE,
    RECORD_FILE,
    Device,
    EngineKey,
    EngineRecord,
    TensorSpec,
    parse_record,
    record_digest,
)
from ssn.core.engines import find_engines, read_engine, refusal, refuse_existing_engines, write_engines
from ssn.core.errors import BundleError, OutputError
from ssn.core.hashed_files import file_entry

H200 = Device("NVIDIA H200", "90", "580.65", 141 * 2**30)
KEY = EngineKey("tensorrt", "10.13.3.9", "NVIDIA H200", "90", "fp16", 8)
BLOBS = {ENCODER_ENGINE: b"encoder code", FLOW_ENGINE: b"flow code"}
REBUILD = "ssn-export build-engine"


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return load_bundle(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def record_for(bundle, key=KEY, blobs=BLOBS):
    slices = TensorSpec("slices", "float16", (-1, 1, 192, 192))
    features = TensorSpec("features", "float16", (-1, 64, 48, 48))
    places, first = TensorSpec("places", "int64", (-1,)), TensorSpec("first", "int64", (1,))
    return EngineRecord(
        key=key,
        onnx={name: bundle.manifest["files"][name]["sha256"] for name in (ENCODER_FILE, FLOW_FILE)},
        files={name: file_entry(data) for name, data in blobs.items()},
        inputs={ENCODER_ENGINE: (slices,), FLOW_ENGINE: (features, places, first)},
        outputs={ENCODER_ENGINE: (features,), FLOW_ENGINE: (TensorSpec("log_likelihood", "float32", (-1,)),)},
        build={"seconds": 12.5},
    )


@pytest.fixture
def written(bundle):
    return write_engines(bundle, record_for(bundle), BLOBS)


def edit(folder, change):
    path = folder / RECORD_FILE
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def only_entry(bundle):
    (entry,) = find_engines(bundle)
    return entry


def test_what_was_written_is_found_and_may_run_on_its_gpu(bundle, written):
    entry = only_entry(bundle)
    assert written.name == "nvidia-h200-sm90-trt10.13.3.9-fp16"
    assert entry.record == record_for(bundle)
    assert refusal(entry.record, bundle, H200, "tensorrt", "10.13.3.9") is None
    assert read_engine(entry, FLOW_ENGINE) == b"flow code"


def test_a_bundle_without_engines_has_none(bundle):
    assert find_engines(bundle) == []


@pytest.mark.parametrize(
    ("device", "builder", "version", "reason"),
    [
        (None, "tensorrt", "10.13.3.9", "no NVIDIA GPU"),
        (dataclasses.replace(H200, name="NVIDIA L4"), "tensorrt", "10.13.3.9", "built for NVIDIA H200"),
        (dataclasses.replace(H200, compute_capability="89"), "tensorrt", "10.13.3.9", "compute capability 90"),
        (H200, "tensorrt", "10.14.0.1", "10.14.0.1"),
        (H200, "tensorrt_rtx", "10.13.3.9", "tensorrt_rtx"),
    ],
)
def test_an_engine_of_another_machine_is_refused_with_the_rebuild_command(bundle, device, builder, version, reason):
    found = refusal(record_for(bundle), bundle, device, builder, version)
    assert reason in found
    assert f"{REBUILD} {bundle.folder} --precision fp16" in found
    assert len(found.splitlines()) == 1


def test_an_engine_of_another_graph_is_refused(bundle):
    record = dataclasses.replace(record_for(bundle), onnx={ENCODER_FILE: "0" * 64, FLOW_FILE: "0" * 64})
    found = refusal(record, bundle, H200, "tensorrt", "10.13.3.9")
    assert "another encoder.onnx" in found
    assert REBUILD in found


@pytest.mark.parametrize(("wanted", "runs"), [("80+", True), ("90", True), ("120+", False), ("86", False)])
def test_an_engine_built_ahead_of_time_runs_where_its_capability_says(bundle, wanted, runs):
    key = EngineKey("tensorrt_rtx", "1.7.1.116", "any", wanted, "fp16", 8)
    assert key.slug == f"any-sm{wanted}-rtx1.7.1.116-fp16"
    assert (refusal(record_for(bundle, key), bundle, H200, "tensorrt_rtx", "1.7.1.116") is None) == runs


@pytest.mark.parametrize("change", [lambda d: d[:-1] + b"!", lambda d: d[:-1], lambda d: d + b"x", lambda d: b""])
def test_a_tampered_engine_is_not_handed_out(bundle, written, change):
    path = written / FLOW_ENGINE
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BundleError, match=rf"flow.engine: was modified.*{REBUILD}"):
        read_engine(only_entry(bundle), FLOW_ENGINE)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["key"].update(gpu="NVIDIA H100"),
        lambda r: r["files"][FLOW_ENGINE].update(sha256="0" * 64),
        lambda r: r.update(schema=99),
        lambda r: r.pop("schema"),
        lambda r: r.pop("files"),
        lambda r: r["key"].pop("gpu"),
        lambda r: r["build"].update(seconds=1),
    ],
)
def test_a_tampered_record_is_reported_with_the_rebuild_command(bundle, written, change):
    edit(written, change)
    entry = only_entry(bundle)
    assert entry.record is None
    assert REBUILD in entry.problem
    assert len(entry.problem.splitlines()) == 1
    with pytest.raises(BundleError, match=REBUILD):
        read_engine(entry, FLOW_ENGINE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["key"].update(builder="other"), "its key makes no sense"),
        (lambda r: r["key"].update(precision="fp8"), "its key makes no sense"),
        (lambda r: r["key"].update(max_windows=0), "its key makes no sense"),
        (lambda r: r["key"].update(compute_capability="9.0"), "compute capability '9.0'"),
        (lambda r: r["files"].pop(FLOW_ENGINE), "are not an engine's"),
        (lambda r: r["files"].update({"../other": file_entry(b"1")}), "are not an engine's"),
        (lambda r: r["files"].update({FLOW_ENGINE: file_entry(b"")}), "no size or hash"),
        (lambda r: r["onnx"].update({FLOW_FILE: None}), "which graphs"),
        (lambda r: r["inputs"][FLOW_ENGINE][0].update(dtype="complex64"), "tensor 'features' makes no sense"),
        (lambda r: r["outputs"][ENCODER_ENGINE][0].update(shape=["x"]), "tensor 'features' makes no sense"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused_though_its_hash_is_right(change, said):
    graphs = {name: file_entry(name.encode()) for name in (ENCODER_FILE, FLOW_FILE)}
    stored = dataclasses.asdict(record_for(SimpleNamespace(manifest={"files": graphs})))
    assert parse_record(stored | {"sha256": record_digest(stored)}).key == KEY
    change(stored)
    with pytest.raises(ValueError, match=said):
        parse_record(stored | {"sha256": record_digest(stored)})


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_record_is_reported_and_hides_no_other_engine(bundle, written, data):
    other = write_engines(bundle, record_for(bundle, dataclasses.replace(KEY, precision="fp32")), BLOBS)
    (written / RECORD_FILE).write_bytes(data)
    damaged, whole = find_engines(bundle)
    assert damaged.record is None
    assert REBUILD in damaged.problem
    assert whole.folder == other
    assert whole.record is not None


def test_a_record_in_another_folder_than_its_own_is_reported(bundle, written):
    written.rename(written.with_name("nvidia-h100-sm90-trt10.13.3.9-fp16"))
    assert "it is the record of nvidia-h200" in only_entry(bundle).problem


def test_links_and_names_that_leave_the_folder_are_refused(bundle, written, tmp_path):
    moved = (written / FLOW_ENGINE).rename(tmp_path / "elsewhere")
    (written / FLOW_ENGINE).symlink_to(moved)
    with pytest.raises(BundleError, match="own folder"):
        read_engine(only_entry(bundle), FLOW_ENGINE)
    with pytest.raises(BundleError, match="no hash on record"):
        read_engine(only_entry(bundle), "../../flow.onnx")
    whole = written.rename(tmp_path / "whole")
    written.symlink_to(whole)
    assert "own folder" in only_entry(bundle).problem
    root = written.parent
    written.unlink()
    root.rmdir()
    root.symlink_to(tmp_path)
    assert "is a link" in only_entry(bundle).problem


def test_where_no_engine_can_be_written_is_said_before_one_is_built(bundle):
    (bundle.folder / "engines").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written; copy the bundle"):
        refuse_existing_engines(bundle, KEY, overwrite=True)


def test_a_folder_is_written_whole_or_not_at_all(bundle, written, monkeypatch):
    with pytest.raises(OutputError, match="--force"):
        write_engines(bundle, record_for(bundle), BLOBS)
    newer = {**BLOBS, FLOW_ENGINE: b"newer"}
    record = record_for(bundle, blobs=newer)

    for step in ("write_text", "rename"):
        real = getattr(Path, step)

        def fail(path, given, real=real):
            if "made" in (path.name, path.parent.name):  # and not what was there before
                raise OSError(28, "No space left on device")
            return real(path, given)

        with monkeypatch.context() as patch:
            patch.setattr(Path, step, fail)
            with pytest.raises(OutputError, match="No space left"):
                write_engines(bundle, record, newer, overwrite=True)
        assert [path.name for path in written.parent.iterdir()] == [written.name]
        assert read_engine(only_entry(bundle), FLOW_ENGINE) == b"flow code"
    write_engines(bundle, record, newer, overwrite=True)
    assert read_engine(only_entry(bundle), FLOW_ENGINE) == b"newer"


def test_inspect_lists_engines_and_fails_on_a_modified_one(bundle, written):
    from typer.testing import CliRunner

    from ssn.cli.export import app

    listed = CliRunner().invoke(app, ["inspect", str(bundle.folder), "--json"])
    assert listed.exit_code == 0, listed.output
    assert json.loads(listed.stdout)["engines"][0]["folder"] == written.name
    assert json.loads(listed.stdout)["engines"][0]["problem"] is None
    (written / FLOW_ENGINE).write_bytes(b"FLOW code")
    result = CliRunner().invoke(app, ["inspect", str(bundle.folder)])
    assert result.exit_code == 1
    assert "was modified" in result.stderr
    assert REBUILD in result.stderr
