import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssn.core.bundle import CALIBRATION_FILE, ENCODER_FILE, FLOW_FILE, MANIFEST_FILE, load_bundle, write_bundle
from ssn.core.calibration_file import pack_calibration, unpack_calibration
from ssn.core.errors import BundleError, OutputError
from ssn.core.hashed_files import file_entry
from ssn.core.onnx_data import has_external_data


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def edit(folder, change):
    path = folder / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def put(folder, name, data):
    """Write a file with its size and hash on record, as whoever makes a bundle can."""
    (folder / name).write_bytes(data)
    edit(folder, lambda m: m["files"].update({name: file_entry(data)}))


def test_a_bundle_opens_and_gives_its_graphs(bundle):
    opened = load_bundle(bundle)
    assert opened.spec.name == "tiny"
    assert opened.read(ENCODER_FILE) == (bundle / ENCODER_FILE).read_bytes()
    assert "Research use only" in opened.manifest["intended_use"]
    assert opened.digest == hashlib.sha256((bundle / MANIFEST_FILE).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", [ENCODER_FILE, FLOW_FILE])
def test_a_graph_with_one_changed_byte_is_refused(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name}: was modified"):
        load_bundle(bundle).read(name)


def test_a_changed_calibration_is_refused_when_the_bundle_opens(bundle):
    with (bundle / "calibration.npz").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match="was modified"):
        load_bundle(bundle)


def test_a_missing_graph_is_refused(bundle):
    (bundle / FLOW_FILE).unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        load_bundle(bundle).read(FLOW_FILE)


def test_a_file_that_is_not_on_record_is_refused(bundle):
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes\.txt: has no hash on record"):
        load_bundle(bundle).read("notes.txt")


def test_a_graph_that_is_none_or_keeps_its_weights_elsewhere_is_refused_though_its_hash_is_right(bundle, tmp_path):
    onnx = pytest.importorskip("onnx")
    whole = bundle / FLOW_FILE
    onnx.save(onnx.load(whole), tmp_path / FLOW_FILE, save_as_external_data=True, location="w", size_threshold=0)
    for data, message in (
        ((tmp_path / FLOW_FILE).read_bytes(), "keeps weights in another file, which is refused"),
        (whole.read_bytes()[:-1000], "is not an ONNX model"),
    ):
        put(bundle, FLOW_FILE, data)
        with pytest.raises(BundleError, match=rf"{FLOW_FILE}: {message}"):
            load_bundle(bundle).read(FLOW_FILE)


def test_a_calibration_that_is_none_or_another_model_s_is_refused_though_its_hash_is_right(bundle, tiny_calibration):
    halved = (tiny_calibration.mean[:, ::2, ::2], tiny_calibration.deviation[:, ::2, ::2])
    small = replace(tiny_calibration, mean=halved[0], deviation=halved[1])
    looks = replace(tiny_calibration, grey=np.zeros((4, 5, 6), np.float32))
    for data, message in (
        (b"PK not really", "not a calibration"),
        (pack_calibration(small), "is of another model"),
        (pack_calibration(looks), "is of another model"),
    ):
        put(bundle, CALIBRATION_FILE, data)
        with pytest.raises(BundleError, match=rf"{CALIBRATION_FILE}: {message}"):
            load_bundle(bundle)


def test_graphs_replaced_in_memory_are_read_in_the_files_place_and_are_on_record(bundle):
    encoder = load_bundle(bundle).with_graphs({ENCODER_FILE: b"another encoder"})
    both = encoder.with_graphs({FLOW_FILE: b"another flow"})
    for name, data in ((ENCODER_FILE, b"another encoder"), (FLOW_FILE, b"another flow")):
        assert both.read(name) == data
        assert both.manifest["files"][name] == file_entry(data)
    assert encoder.read(FLOW_FILE) == (bundle / FLOW_FILE).read_bytes()


def test_a_link_out_of_the_bundle_is_refused(bundle, tmp_path):
    moved = (bundle / ENCODER_FILE).rename(tmp_path / "elsewhere.onnx")
    (bundle / ENCODER_FILE).symlink_to(moved)
    with pytest.raises(BundleError, match="own folder"):
        load_bundle(bundle).read(ENCODER_FILE)


def test_a_name_that_leaves_the_bundle_is_refused(bundle):
    edit(bundle, lambda m: m["files"].update({"../evil.onnx": m["files"][ENCODER_FILE]}))
    with pytest.raises(BundleError, match="own folder"):
        load_bundle(bundle).read("../evil.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=99), "schema 99"),
        (lambda m: m.pop("schema"), "schema"),
        (lambda m: m.pop("files"), "files"),
        (lambda m: m["files"].pop(ENCODER_FILE), "encoder.onnx"),
        (lambda m: m["files"].pop(FLOW_FILE), "flow.onnx"),
        (lambda m: m["files"][FLOW_FILE].update(sha256=5), "no size or hash"),
        (lambda m: m["files"][FLOW_FILE].update(bytes="many"), "no size or hash"),
        (lambda m: m["files"][FLOW_FILE].update(bytes=-5), "no size or hash"),
        (lambda m: m["files"]["calibration.npz"].update(bytes=10**30), "was modified"),
        (lambda m: m["files"]["calibration.npz"].update(bytes=10**15), "was modified"),
        (lambda m: m["files"].update(foo={}), "foo has no size or hash"),
        (lambda m: m.pop("intended_use"), "intended_use"),
        (lambda m: m.update(intended_use=None), "intended_use"),
        (lambda m: m.update(architecture=None), "names no encoder"),
        (lambda m: m.update(architecture={"encoder": None}), "names no encoder"),
        (lambda m: m.update(architecture={"encoder": {"name": 5}}), "names no encoder"),
        (lambda m: m.update(training=[]), "training is no record"),
        (lambda m: m.update(training={"made_of": None}), "training is no record"),
        (lambda m: m["model"].update(normalisation="magic"), "magic"),
        (lambda m: m["model"].update(cells=47), "47 cells"),
        (lambda m: m["model"].update(cells=0), "cells is 0"),
        (lambda m: m["model"].update(thick="thin"), "thick slice 'thin' is unknown"),
        (lambda m: m["model"].update(occupancy=2), "out of range"),
        (lambda m: m["model"].update(occupancy=-0.1), "out of range"),
        (lambda m: m["model"].update(features=True), "features is True"),
        (lambda m: m["model"].update(name=None), "name or modality"),
        (lambda m: m["model"].update(modality=None), "name or modality"),
        (lambda m: m["model"]["grid"].update(plane=100), "plane"),
        (lambda m: m["model"]["grid"].update(plane=192.0), "plane is 192.0"),
        (lambda m: m["model"]["grid"].update(window=0), "window"),
        (lambda m: m["model"]["grid"].update(paper=1), "paper is 1"),
        (lambda m: m["model"].update(surprise=1), "surprise"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(bundle, change, message):
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


def test_a_folder_without_manifest_and_a_manifest_that_is_no_json_are_refused(bundle, tmp_path):
    with pytest.raises(BundleError, match="not a model bundle"):
        load_bundle(tmp_path / "nothing")
    for text in ("{", "[" * 100_000):
        (bundle / MANIFEST_FILE).write_text(text)
        with pytest.raises(BundleError, match="damaged"):
            load_bundle(bundle)


def test_a_calibration_survives_its_file(tiny_calibration):
    back = unpack_calibration(pack_calibration(tiny_calibration))
    np.testing.assert_allclose(back.mean, tiny_calibration.mean, atol=1e-3)
    np.testing.assert_array_equal(back.healthy_scores, tiny_calibration.healthy_scores)
    assert (back.gain, back.threshold) == (tiny_calibration.gain, tiny_calibration.threshold)
    assert back.voxel_mm is None
    assert unpack_calibration(pack_calibration(replace(tiny_calibration, voxel_mm=2.5))).voxel_mm == 2.5
    with pytest.raises(ValueError, match="voxel size"):
        unpack_calibration(pack_calibration(replace(tiny_calibration, voxel_mm=-1.0)))
    assert not back.aligned_to_itself
    assert unpack_calibration(pack_calibration(replace(tiny_calibration, aligned_to_itself=True))).aligned_to_itself
    assert back.grey is None
    grey = np.linspace(-3, 3, 60, dtype=np.float32).reshape(3, 4, 5)
    grey[0, 0] = np.nan
    again = unpack_calibration(pack_calibration(replace(tiny_calibration, grey=grey)))
    np.testing.assert_allclose(again.grey, grey, atol=2e-3)
    with pytest.raises(ValueError, match="grey values"):
        unpack_calibration(pack_calibration(replace(tiny_calibration, grey=grey[0])))


def test_bytes_that_are_no_calibration_are_refused(tiny_calibration):
    whole = pack_calibration(tiny_calibration)
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    for data in (b"PK not really", b"", whole[: len(whole) // 2], bytes(flipped)):
        with pytest.raises(ValueError, match="not a calibration"):
            unpack_calibration(data)
    with pytest.raises(ValueError, match="impossible values"):
        unpack_calibration(pack_calibration(replace(tiny_calibration, gain=float("nan"))))


def test_weights_in_another_file_are_found_wherever_they_hide(tmp_path, tiny_bundle):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tiny_bundle / FLOW_FILE)
    assert not has_external_data(model.SerializeToString())
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert has_external_data((tmp_path / "m.onnx").read_bytes())
    tensor = onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, [1], [0.0])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    node = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
    hidden = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    assert has_external_data(hidden.SerializeToString())
    outer = onnx.helper.make_node("If", ["c"], ["y"], then_branch=hidden.graph, else_branch=hidden.graph)
    nested = onnx.helper.make_model(onnx.helper.make_graph([outer], "g", [], []))
    assert has_external_data(nested.SerializeToString())


def test_a_truncated_model_is_told_from_a_model(tiny_bundle):
    data = (tiny_bundle / FLOW_FILE).read_bytes()
    with pytest.raises(ValueError, match=r"longer|middle"):
        has_external_data(data[: len(data) // 2])


def test_export_replaces_a_bundle_only_when_told_and_nothing_but_a_bundle(
    tiny_detector, tiny_calibration, bundle, tmp_path
):
    from ssn.export.onnx import export_bundle

    options = {"name": "again", "modality": "t1"}
    with pytest.raises(OutputError, match="--force"):
        export_bundle(tiny_detector, tiny_calibration, bundle, **options)
    assert load_bundle(bundle).spec.name == "tiny"
    (bundle / "MODEL_CARD.md").write_text("about")
    (bundle / "engines" / "one").mkdir(parents=True)
    (bundle / "engines" / "one" / "flow.engine").write_bytes(b"code")
    export_bundle(tiny_detector, tiny_calibration, bundle, **options, overwrite=True)
    assert load_bundle(bundle).spec.name == "again"
    assert (bundle / "MODEL_CARD.md").read_text() == "about"
    assert (bundle / "engines" / "one" / "flow.engine").read_bytes() == b"code"
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="not a model bundle"):
        export_bundle(tiny_detector, tiny_calibration, precious, **options, overwrite=True)
    assert (precious / "thesis.tex").exists()


def test_what_is_said_about_a_bundle_changes_neither_its_files_nor_its_intended_use(bundle, tiny_calibration, tmp_path):
    made = load_bundle(bundle)
    graphs = {name: made.read(name) for name in (ENCODER_FILE, FLOW_FILE)}
    about = {"intended_use": "diagnosis", "files": {}, "accuracy": {"all": 1}}
    new = write_bundle(tmp_path / "folders" / "to make" / "new", made.spec, graphs, tiny_calibration, about)
    assert (new.spec, new.manifest["accuracy"]) == (made.spec, {"all": 1})
    assert new.manifest["intended_use"] == made.manifest["intended_use"]


def test_a_calibration_that_no_bundle_may_have_is_not_written(bundle, tiny_calibration, tmp_path):
    made = load_bundle(bundle)
    graphs = {name: made.read(name) for name in (ENCODER_FILE, FLOW_FILE)}
    with pytest.raises(OutputError, match="is not written, because what was measured is not a calibration"):
        write_bundle(tmp_path / "new", made.spec, graphs, replace(tiny_calibration, gain=float("inf")), {})
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


@pytest.mark.parametrize("step", ["write_text", "rename"])
def test_a_bundle_that_cannot_be_replaced_stays_as_it_was(bundle, tiny_calibration, monkeypatch, step):
    made = load_bundle(bundle)
    (bundle / "engines").mkdir()
    before = {path.name for path in bundle.iterdir()}
    real = getattr(Path, step)

    def full(path, given):
        if path.name in ("bundle", MANIFEST_FILE) and path.parent != bundle.parent:  # what is made, and not what was
            raise OSError(28, "No space left on device")
        return real(path, given)

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, full)
        graphs = {name: made.read(name) for name in (ENCODER_FILE, FLOW_FILE)}
        with pytest.raises(OutputError, match=r"bundle: cannot be written \(No space left on device\)"):
            write_bundle(bundle, replace(made.spec, name="new"), graphs, tiny_calibration, {}, overwrite=True)
    assert {path.name for path in bundle.parent.iterdir()} == {"bundle"}
    assert {path.name for path in bundle.iterdir()} == before
    assert load_bundle(bundle).spec.name == "tiny"
