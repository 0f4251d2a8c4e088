"""What `--align` does: each volume's features are aligned by their own."""

import json
from dataclasses import replace
from functools import partial

import nibabel as nib
import numpy as np
import pytest
from brains import brain_file
from commands import run

from ssn.cli.export import app as export_app
from ssn.cli.infer import app
from ssn.cli.train import app as train_app
from ssn.core.alignment import Moments
from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, write_bundle
from ssn.core.look import look_at
from ssn.core.scoring import cell_scores
from ssn.core.self_alignment import EVERY, HEALTHY, SHARE
from ssn.core.volume import read_volume
from ssn.export.onnx import export_bundle
from ssn.runtime.align import Alignment, at_places, moments_of, read_whitening
from ssn.runtime.backend import DEFAULT_BATCH, StageTimes, plan_batches, run_batches
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.openvino import OpenVinoBackend
from ssn.runtime.self_aligned import SelfAlignedBackend, whitening_of
from ssn.train.checkpoint import Detector
from ssn.train.network import FeatureNetwork

infer = partial(run, app)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    return [brain_file(folder / f"s{seed}.nii.gz", (5.0, 5.0, 5.0), seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def stack(scans, bundle):
    return look_at(read_volume(scans[0]), bundle.spec.cut, bundle.calibration).stack


def values(backend, stack, bundle, slices=DEFAULT_BATCH):
    return run_batches(backend, stack, bundle.spec.occupancy, slices, StageTimes())[1]


def aligning(bundle, backend, *share):
    return SelfAlignedBackend(bundle, whitening_of(bundle), backend, *share)


def test_all_of_the_way_is_what_a_bundle_aligned_with_its_healthy_places_says(stack, bundle):
    """Which places count, and the map by their moments, each asked of a bundle with other weights."""
    whitening = read_whitening(bundle)
    batches = list(plan_batches(stack, bundle.spec.occupancy, DEFAULT_BATCH))
    places = np.concatenate([batch.places for batch in batches])[::EVERY]

    def said_by(moments):
        with OnnxRuntimeBackend(Alignment(bundle, whitening, [moments], 1.0).aligned(), 1) as aligned:
            return values(aligned, stack, bundle)

    with OnnxRuntimeBackend(bundle, 1) as backend:
        found = values(aligning(bundle, backend, 1.0), stack, bundle)
        pairs = zip(backend.features(batches), batches, strict=True)
        rows = np.concatenate([at_places(features, batch, bundle.spec.cells) for features, batch in pairs])[::EVERY]
    scores = cell_scores(said_by(Moments.of(rows, whitening.mean))[::EVERY], places, bundle.calibration)
    healthy = rows[scores <= np.quantile(scores, HEALTHY)]
    np.testing.assert_allclose(found, said_by(Moments.of(healthy, whitening.mean)), rtol=1e-5, atol=2e-4)


def test_none_of_the_way_changes_nothing_and_half_of_it_something(stack, bundle):
    with OnnxRuntimeBackend(bundle, 1) as backend:
        plain = values(backend, stack, bundle)
        np.testing.assert_allclose(values(aligning(bundle, backend, 0.0), stack, bundle), plain, atol=2e-4)
        assert np.abs(values(aligning(bundle, backend), stack, bundle) - plain).max() > 0.1


@pytest.mark.parametrize(
    ("make", "threads", "slices"),
    [(OnnxRuntimeBackend, 2, 6), (OnnxRuntimeBackend, 1, 3), (OnnxRuntimeBackend, 1, 96), (OpenVinoBackend, 1, 6)],
)
def test_neither_backends_nor_threads_nor_batches_change_the_answer(stack, bundle, make, threads, slices):
    if make is OpenVinoBackend:
        pytest.importorskip("openvino")
    with OnnxRuntimeBackend(bundle, 1) as backend:
        expected = values(aligning(bundle, backend), stack, bundle)
    with make(bundle, threads) as backend:
        aligned = aligning(bundle, backend)
        found = values(aligned, stack, bundle, slices)
        assert aligned.describe() == backend.describe() | {"aligned_to_itself": SHARE}
    # Rounding moves a place or two across the line to those that have no say.
    np.testing.assert_allclose(found, expected, rtol=5e-4, atol=5e-4)


def test_the_features_of_another_scanner_come_halfway_back(stack, bundle):
    """Shifted and stretched features, as another scanner makes them, and what is left of that."""
    known = read_whitening(bundle)
    batches = list(plan_batches(stack, bundle.spec.occupancy, DEFAULT_BATCH))
    with OnnxRuntimeBackend(bundle, 1) as backend:
        features = list(backend.features(batches))
    own = moments_of(features, batches, bundle, known.mean)
    other = moments_of([3 * found + 1 for found in features], batches, bundle, known.mean)
    brought = []
    for moments in (own, other):
        matrix, _ = known.align(moments, SHARE)
        brought.append(np.trace(matrix @ moments.covariance @ matrix.T))
    assert brought[1] / brought[0] == pytest.approx(9 ** (1 - SHARE), rel=0.05)


def test_it_is_on_record_and_resumed_as_such_only(scans, tiny_bundle, tmp_path):
    out = tmp_path / "out"
    call = partial(infer, *scans, "-o", out, "--model", tiny_bundle, "--no-png", "--threads", 2)
    assert (result := call()).exit_code == 0, result.stderr
    plain = np.asarray(nib.load(out / "s0_anomaly.nii.gz").dataobj)
    assert "aligned_to_itself" not in json.loads((out / "s0.json").read_text())["backend"]
    assert call("--align", "--resume").exit_code == 0
    aligned = np.asarray(nib.load(out / "s0_anomaly.nii.gz").dataobj)
    record = json.loads((out / "s0.json").read_text())
    assert record["backend"]["aligned_to_itself"] == SHARE
    assert set(record["times_ms"]) >= {"encoder", "align", "flow"}
    assert np.abs(aligned - plain).max() > 0.1
    written = (out / "s0.json").stat().st_mtime_ns
    assert call("--align", "--resume").exit_code == 0
    assert (out / "s0.json").stat().st_mtime_ns == written, "kept"
    alone = infer(scans[0], "-o", tmp_path / "alone", "--model", tiny_bundle, "--no-png", "--threads", 1, "--align")
    assert alone.exit_code == 0
    np.testing.assert_allclose(
        nib.load(tmp_path / "alone" / "s0_anomaly.nii.gz").dataobj, aligned, rtol=5e-4, atol=5e-3
    )


def test_a_model_whose_threshold_is_for_aligned_volumes_aligns_unless_told_not_to(scans, bundle, tmp_path):
    graphs = {name: bundle.read(name) for name in (ENCODER_FILE, FLOW_FILE)}
    calibration = replace(bundle.calibration, aligned_to_itself=True)
    aligning_one = write_bundle(tmp_path / "aligning", bundle.spec, graphs, calibration, {}).folder
    table = tmp_path / "data.csv"
    table.write_text(f"image,mask,split\n{scans[0]},,test\n")
    for model, told in ((bundle.folder, "volumes as they are"), (aligning_one, "each aligned by its own features")):
        assert told in " ".join(run(export_app, "inspect", model).stdout.split())
    scores = []
    for model, option, aligned in (
        (bundle.folder, None, False),
        (bundle.folder, "--align", True),
        (aligning_one, None, True),
        (aligning_one, "--no-align", False),
    ):
        out, options = tmp_path / str(len(scores)), [option] if option else []
        assert infer(scans[0], "-o", out, "--model", model, "--no-png", *options).exit_code == 0
        record = json.loads((out / "s0.json").read_text())
        assert ("aligned_to_itself" in record["backend"]) == aligned
        measured = out / "measured.json"
        assert run(train_app, "evaluate", model, table, "--own-threshold", "-o", measured, *options).exit_code == 0
        (row,) = json.loads(measured.read_text())["volumes"]
        assert row["score"] == pytest.approx(record["volume"]["score"], rel=5e-4)
        scores.append(record["volume"]["score"])
    plain, aligned, own, told = scores
    assert (own, told) == pytest.approx((aligned, plain), rel=5e-4)
    assert plain != pytest.approx(aligned, abs=0.05)


def test_a_bundle_that_does_not_whiten_is_refused(tiny_detector, tiny_calibration, scans, tmp_path):
    network = FeatureNetwork(replace(tiny_detector.config, whiten=False), weights="none").eval()
    plain = Detector(network.config, network, tiny_detector.flow, tiny_detector.codes, tiny_detector.record)
    export_bundle(plain, tiny_calibration, tmp_path / "plain", name="plain", modality="t1")
    result = infer(scans[0], "-o", tmp_path / "out", "--model", tmp_path / "plain", "--align")
    assert result.exit_code == 1
    assert result.stderr.endswith(
        "does not whiten all its features, so a volume's cannot be aligned; give --no-align\n"
    )
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_evaluate_measures_the_maps_that_infer_writes(scans, tiny_bundle, tmp_path):
    mask = nib.load(scans[0])
    lesion = (np.asarray(mask.dataobj) > 800).astype(np.uint8)
    assert lesion.any()
    nib.save(nib.Nifti1Image(lesion, mask.affine), tmp_path / "mask.nii.gz")
    table = tmp_path / "data.csv"
    table.write_text(f"image,mask,split\n{scans[0]},mask.nii.gz,test\n{scans[1]},,test\n")
    call = partial(run, train_app, "evaluate", tiny_bundle, table, "--own-threshold", "-o")
    scores = {}
    for name, options in (("plain", ()), ("aligned", ("--align",))):
        assert (result := call(tmp_path / f"{name}.json", *options)).exit_code == 0, result.stderr
        scores[name] = [row["score"] for row in json.loads((tmp_path / f"{name}.json").read_text())["volumes"]]
    assert scores["plain"] != pytest.approx(scores["aligned"], abs=0.05)
    assert infer(*scans[:2], "-o", tmp_path / "out", "--model", tiny_bundle, "--no-png", "--align").exit_code == 0
    told = [json.loads((tmp_path / "out" / f"s{n}.json").read_text())["volume"]["score"] for n in (0, 1)]
    assert scores["aligned"] == pytest.approx(told, rel=5e-4)
