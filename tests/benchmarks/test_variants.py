"""Every way to compute a map that is timed gives the same map."""

import numpy as np
import pytest
from brains import brain_file

from ssn.benchmarks.variants import Way, accuracy_mark, compute_map, quantised
from ssn.core.bundle import ENCODER_FILE, load_bundle
from ssn.export.int8 import sensitive_convolutions
from ssn.export.precision import read_model
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.pipeline import infer_volume

WAYS = {
    "plain": Way(all_slices=True, all_cells=True, scipy_map=True),
    "all cells": Way(all_cells=True),
    "map by scipy": Way(scipy_map=True),
    "small batches": Way(batch=6),
}


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return brain_file(tmp_path_factory.mktemp("scan") / "scan.nii.gz", zooms=(4.0, 4.0, 4.0))


def test_every_way_gives_the_map_of_the_product(tiny_bundle, scan):
    bundle = load_bundle(tiny_bundle)
    with OnnxRuntimeBackend(bundle, threads=1) as backend:
        expected = infer_volume(scan, bundle, backend).score_map
        for name, way in WAYS.items():
            given, _ = compute_map(way, bundle, backend, scan)
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
            maps.append(compute_map(Way(), one, backend, scan)[0])
    inside = maps[0] != 0
    assert 0.97 < np.corrcoef(maps[0][inside], maps[1][inside])[0, 1] < 0.999999


def test_the_first_convolutions_stay_in_fp32(tiny_bundle):
    encoder = read_model(load_bundle(tiny_bundle).read(ENCODER_FILE))
    kept = sensitive_convolutions(encoder)
    convolutions = [node for node in encoder.graph.node if node.op_type == "Conv"]
    assert kept == {node.name for node in convolutions[:6]}


def test_a_step_that_changes_the_map_or_the_score_is_marked():
    assert accuracy_mark(0.9995, 10.0, 10.05) == "kept"
    assert accuracy_mark(0.9985, 10.0, 10.0) == "drops accuracy"
    assert accuracy_mark(1.0, 10.0, 9.8) == "drops accuracy"
    assert accuracy_mark(float("nan"), 10.0, 10.0) == "drops accuracy"
