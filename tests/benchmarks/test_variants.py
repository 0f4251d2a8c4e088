"""Every way to compute a map that is timed gives the same map."""

import nibabel as nib
import numpy as np
import pytest
from brains import brain_file
from typer.testing import CliRunner

from ssn.benchmarks.pages.tables import accuracy_mark
from ssn.benchmarks.steps.brain_box import Box, box_of, cut_to_box
from ssn.benchmarks.steps.lesioned import mean_auprc
from ssn.benchmarks.steps.variants import Ground, Step, measure_variants
from ssn.benchmarks.steps.ways import Way, compute_map, open_way, quantised
from ssn.cli.bench import app
from ssn.core.bundle import ENCODER_FILE, load_bundle
from ssn.core.volume import read_volume
from ssn.export.int8 import sensitive_convolutions
from ssn.export.precision import read_model
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.pipeline import infer_volume
from ssn.train.cases import Case

WAYS = {
    "plain": Way(all_slices=True, all_cells=True, scipy_map=True),
    "all cells": Way(all_cells=True),
    "map by scipy": Way(scipy_map=True),
    "small batches": Way(batch=6),
}


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return brain_file(tmp_path_factory.mktemp("scan") / "scan.nii.gz", zooms=(4.0, 4.0, 4.0))


@pytest.mark.parametrize("given", [("--engine", "torch"), ("--against", "VQVAE"), ("--rounds", "5"), ("--ratio", "2"),
                                   ("--full",), ("--native",)])  # fmt: skip
def test_an_option_that_does_nothing_for_the_steps_is_refused(given, tmp_path):
    result = CliRunner().invoke(app, ["latency", "--variants", "-o", str(tmp_path / "results"), *given])
    assert result.exit_code == 2
    assert f"{given[0]} does nothing" in result.stderr
    assert not list(tmp_path.iterdir())


def test_every_way_gives_the_map_of_the_product(tiny_bundle, scan):
    bundle = load_bundle(tiny_bundle)
    with OnnxRuntimeBackend(bundle, threads=1) as backend:
        expected = infer_volume(scan, bundle, backend).score_map
        for name, way in WAYS.items():
            given = compute_map(way, bundle, backend, scan)
            inside = expected != 0
            if way.all_slices:  # the Gaussian sees emptiness beyond the brain's ends, and not their mirror image
                assert np.corrcoef(given[inside], expected[inside])[0, 1] > 0.999
            else:
                np.testing.assert_allclose(given, expected, atol=2e-3, err_msg=name)


def test_the_plain_way_computes_every_slice(tiny_bundle, scan):
    bundle = load_bundle(tiny_bundle)
    seen = []

    class Counting(OnnxRuntimeBackend):
        def run(self, batches, times):
            batches = list(batches)
            seen.append((sum(len(b.slices) for b in batches), sum(len(b.places) for b in batches)))
            return super().run(batches, times)

    with Counting(bundle, threads=1) as backend:
        compute_map(WAYS["plain"], bundle, backend, scan)
        compute_map(Way(), bundle, backend, scan)
    grid, cells = bundle.spec.grid, bundle.spec.cells
    assert seen[0] == (grid.depth, grid.windows * cells**2)
    assert seen[1][0] < seen[0][0]
    assert seen[1][1] < seen[0][1] / 2


def test_the_8_bit_encoder_runs_and_its_map_is_alike_but_not_the_same(tiny_bundle, scan, tmp_path):
    bundle = load_bundle(tiny_bundle)
    maps = []
    for one in (bundle, quantised(bundle, scan, tmp_path)):
        with OnnxRuntimeBackend(one, threads=1) as backend:
            maps.append(compute_map(Way(), one, backend, scan))
    inside = maps[0] != 0
    assert 0.97 < np.corrcoef(maps[0][inside], maps[1][inside])[0, 1] < 0.999999


def test_the_first_convolutions_stay_in_fp32(tiny_bundle):
    encoder = read_model(load_bundle(tiny_bundle).read(ENCODER_FILE))
    kept = sensitive_convolutions(encoder)
    convolutions = [node for node in encoder.graph.node if node.op_type == "Conv"]
    assert kept == {node.name for node in convolutions[:6]}


@pytest.mark.parametrize(
    ("correlation", "score", "auprc", "mark"),
    [
        (0.9995, 10.05, None, "kept"),
        (0.9995, 10.05, 0.498, "kept"),
        (0.9995, 10.05, 0.49, "drops accuracy"),
        (0.9985, 10.0, 0.6, "changes the map"),
        (1.0, 9.8, 0.5, "changes the map"),
        (1.0, 9.8, None, "drops accuracy"),
        (float("nan"), 10.0, None, "drops accuracy"),
    ],
)
def test_a_step_that_changes_the_map_the_score_or_what_is_found_is_marked(correlation, score, auprc, mark):
    row = {"map_correlation": correlation, "volume_score_before": 10.0, "volume_score_after": score}
    if auprc is not None:
        row |= {"auprc_before": 0.5, "auprc_after": auprc}
    assert accuracy_mark(row) == mark


def test_graphs_cut_to_the_whole_grid_say_the_same_and_places_come_back(tiny_bundle, scan, tmp_path):
    bundle = load_bundle(tiny_bundle)
    cells = bundle.spec.cells
    everything = Box((0, cells), (0, cells))
    with open_way(Way(), bundle, scan, tmp_path, everything) as draw:
        expected = draw(scan)
    with open_way(Way(brain_box=True), bundle, scan, tmp_path, everything) as draw:
        np.testing.assert_array_equal(draw(scan), expected)


def test_the_box_holds_the_brain_and_its_cells_keep_their_places_and_location_codes(tiny_bundle, scan, tmp_path):
    bundle = load_bundle(tiny_bundle)
    spec = bundle.spec
    stack = spec.cut(read_volume(scan))
    box = box_of([stack])
    assert np.prod(box.shape) < spec.cells**2
    part = box.cut(stack)
    assert part.occupancy.sum() == stack.occupancy.sum()
    places = box.places_in_grid(part.occupied_places(spec.occupancy), spec.cells)
    np.testing.assert_array_equal(places, stack.occupied_places(spec.occupancy))
    # The same features at the same places must be as likely: only what the encoder sees may differ.
    import onnxruntime as ort

    rng = np.random.default_rng(0)
    inside = rng.standard_normal((2, spec.features, *box.shape), np.float32)
    whole = np.zeros((2, spec.features, spec.cells, spec.cells), np.float32)
    whole[:, :, slice(*box.rows), slice(*box.columns)] = inside
    local = np.arange(0, 2 * np.prod(box.shape), 7)
    answers = [
        ort.InferenceSession(own.read("flow.onnx"), providers=["CPUExecutionProvider"]).run(
            None, {"features": features, "places": asked, "first": np.zeros(1, np.int64)}
        )[0]
        for own, features, asked in (
            (bundle, whole, box.places_in_grid(local, spec.cells)),
            (cut_to_box(bundle, box, tmp_path), inside, local),
        )
    ]
    np.testing.assert_allclose(*answers, rtol=1e-5, atol=1e-5)


def test_the_brain_alone_gives_another_map_but_not_quite(tiny_bundle, scan, tmp_path):
    bundle = load_bundle(tiny_bundle)
    box = box_of([bundle.spec.cut(read_volume(scan))])
    maps = []
    for way in (Way(), Way(brain_box=True)):
        with open_way(way, bundle, scan, tmp_path, box) as draw:
            maps.append(draw(scan))
    inside = maps[0] != 0
    np.testing.assert_array_equal(inside, maps[1] != 0)
    assert 0.9 < np.corrcoef(maps[0][inside], maps[1][inside])[0, 1] < 0.999999


def test_a_step_has_its_lesions_beside_it_and_one_that_does_not_run_has_its_reason(tiny_bundle, scan, tmp_path):
    image = nib.load(scan)
    mask = np.zeros(image.shape, np.uint8)
    mask[tuple(slice(side // 2 - 2, side // 2 + 2) for side in image.shape)] = 1
    nib.save(nib.Nifti1Image(mask, image.affine), tmp_path / "mask.nii.gz")
    lesioned = [Case(scan, "scan", "scan", "test", mask=tmp_path / "mask.nii.gz")]
    ground = Ground(load_bundle(tiny_bundle), scan, tmp_path, lesioned)
    todo = [Step("same", Way(), Way()), Step("odd", Way(), Way(engine="onnxruntime tensorrt"))]
    same, odd = measure_variants(ground, todo, minutes=0.001)
    with open_way(Way(), ground.bundle, scan, tmp_path, ground.box()) as draw:
        expected = mean_auprc(lesioned, draw)
    assert same["auprc_before"] == same["auprc_after"] == round(expected, 4)
    assert accuracy_mark(same) == "kept"
    assert "TensorrtExecutionProvider" in odd["problem"]
