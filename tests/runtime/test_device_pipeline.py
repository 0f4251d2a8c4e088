"""The pipeline's own code on a device made of threads, with a bundle's real graphs as what computes."""

import numpy as np
import onnxruntime as ort
import pytest
from brains import brain_file
from random_batches import batches
from simulated_cuda import SimulatedCuda, array_at

from ssn.benchmarks.gpu.timing import end_to_end
from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, load_bundle
from ssn.core.errors import MemoryLimitError
from ssn.runtime.backend import StageTimes
from ssn.runtime.device_pipeline import DevicePipeline
from ssn.runtime.memory import BatchLayout, Footprint, fit_windows
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.pipeline import infer_volume
from ssn.runtime.schedule import Schedule

WINDOWS = 4


class Graphs:
    """ONNX Runtime on simulated device memory, queued like kernels."""

    def __init__(self, cuda, bundle, layout):
        self.cuda, self.layout, self.shapes = cuda, layout, set()
        self.encoder_session, self.flow_session = (
            ort.InferenceSession(bundle.read(name), providers=["CPUExecutionProvider"])
            for name in (ENCODER_FILE, FLOW_FILE)
        )

    def features(self, slot, windows):
        layout = self.layout
        return array_at(slot.device_features, (windows, layout.channels, layout.cells, layout.cells), np.float32)

    def encoder(self, slot, windows, stream):
        self.shapes.add((windows, 0))
        layout = self.layout

        def compute():
            slices = array_at(slot.device_slices, (windows * layout.each, 1, layout.plane, layout.plane), np.float32)
            self.features(slot, windows)[...] = self.encoder_session.run(None, {"slices": slices})[0]

        self.cuda.put(stream, compute)

    def flow(self, slot, windows, places, stream):
        self.shapes.add((windows, places))

        def compute():
            given = {
                "features": self.features(slot, windows),
                "places": array_at(slot.device_places, (places,), np.int64),
                "first": array_at(slot.device_first, (1,), np.int64),
            }
            array_at(slot.device_values, (places,), np.float32)[...] = self.flow_session.run(None, given)[0]

        self.cuda.put(stream, compute)


@pytest.fixture(scope="module", params=["tiny_bundle", "thick_bundle"])
def bundle(request):
    return load_bundle(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def expected(bundle):
    with OnnxRuntimeBackend(bundle) as backend:
        return list(backend.run(batches(bundle), StageTimes()))


@pytest.fixture
def make(bundle):
    devices = []

    def pipeline(schedule, *, graphs=True, **options):
        cuda = SimulatedCuda(**options)
        devices.append(cuda)
        layout = BatchLayout.of(bundle.spec)
        stages = Graphs(cuda, bundle, layout)
        return DevicePipeline(cuda, layout, WINDOWS, stages, schedule, graphs=graphs), cuda, stages

    yield pipeline
    for cuda in devices:
        cuda.close()


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
@pytest.mark.parametrize("schedule", [Schedule(1, overlap=False), Schedule(1), Schedule(2), Schedule(3)], ids=str)
def test_overlap_and_graphs_do_not_change_a_single_result(make, bundle, expected, schedule, graphs):
    pipeline, cuda, _ = make(schedule, graphs=graphs, seed=schedule.slots, pause=5e-3)
    times = StageTimes()
    for _ in range(2):  # the second volume runs from captured graphs, in buffers full of the first
        results = list(pipeline.run(batches(bundle), times))
        assert len(results) == len(expected)
        for given, wanted in zip(results, expected, strict=True):
            np.testing.assert_allclose(given, wanted, atol=1e-5)
    assert set(times.seconds) == {"copy_in", "encoder", "flow", "copy_out"}
    assert (cuda.launches > 0) == graphs


def test_shapes_are_few_whatever_the_batches(make, bundle):
    pipeline, _, stages = make(Schedule(2))
    list(pipeline.run(batches(bundle, (1, 2, 3, 4, 1, 3, 2, 4, 4)), StageTimes()))
    assert len({windows for windows, _ in stages.shapes}) <= 2
    assert len(stages.shapes) <= 2 + 8


def test_a_graph_that_cannot_be_captured_is_done_without(make, bundle, expected):
    pipeline, _, _ = make(Schedule(2), graphs_fail=True)
    results = list(pipeline.run(batches(bundle), StageTimes()))
    np.testing.assert_allclose(np.concatenate(results), np.concatenate(expected), atol=1e-5)
    assert not pipeline.graphs
    assert "capture failed" in pipeline.graph_problem


def test_a_caller_that_stops_early_does_not_spoil_the_next_volume(make, bundle, expected):
    pipeline, _, _ = make(Schedule(2), pause=1e-2)
    stopped = pipeline.run(batches(bundle, (4, 4, 4, 4)), StageTimes())
    next(stopped)
    stopped.close()
    results = list(pipeline.run(batches(bundle), StageTimes()))
    np.testing.assert_allclose(np.concatenate(results), np.concatenate(expected), atol=1e-5)


def test_a_volume_passes_from_its_file_to_its_map(make, bundle, tmp_path):
    pipeline, _, stages = make(Schedule(2))
    scan = brain_file(tmp_path / "scan.nii.gz", zooms=(4.0, 4.0, 6.0))
    with OnnxRuntimeBackend(bundle) as backend:
        wanted = infer_volume(scan, bundle, backend)
    given = infer_volume(scan, bundle, pipeline, batch=10**6)  # more than its buffers hold: it takes what they do
    np.testing.assert_allclose(given.score_map, wanted.score_map, atol=1e-3)
    assert max(windows for windows, _ in stages.shapes) == WINDOWS
    found = end_to_end(pipeline, bundle, scan, 10**6, rounds=2)
    assert found["volume"]["rounds"] == 2
    assert set(found["stages_ms"]) == {"read", "prepare", "copy_in", "encoder", "flow", "copy_out", "map"}


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
@pytest.mark.parametrize("schedule", [Schedule(1, overlap=False), Schedule(2)], ids=str)
def test_encoder_and_flow_one_after_the_other_give_what_a_run_gives(make, bundle, expected, schedule, graphs):
    pipeline, _, _ = make(schedule, graphs=graphs, pause=2e-3)
    given = list(batches(bundle))
    with OnnxRuntimeBackend(bundle) as backend:
        wanted = list(backend.features(given))
    for _ in range(2):  # from captured graphs, and in buffers that a whole run has used
        features = list(pipeline.features(given))
        for found, known in zip(features, wanted, strict=True):
            np.testing.assert_allclose(found, known, atol=1e-5)
        # Of the last batch first, so that none finds its own features where the encoder left them.
        scores = list(pipeline.scores(features[::-1], given[::-1]))[::-1]
        results = list(pipeline.run(given, StageTimes()))
        for found, again, known in zip(scores, results, expected, strict=True):
            np.testing.assert_allclose(found, known, atol=1e-5)
            np.testing.assert_allclose(again, known, atol=1e-5)


def test_encoder_and_flow_apart_are_not_spoilt_by_what_was_stopped_early_and_take_no_device_memory(
    make, bundle, expected
):
    pipeline, cuda, _ = make(Schedule(2), pause=1e-2)
    given, before = list(batches(bundle)), cuda.allocated
    for stopped in (pipeline.run(batches(bundle, (4, 4, 4, 4)), StageTimes()), pipeline.features(given[::-1])):
        next(stopped)
        stopped.close()
        found = pipeline.scores(pipeline.features(given), given)  # one after the other in the same buffers
        np.testing.assert_allclose(np.concatenate(list(found)), np.concatenate(expected), atol=1e-5)
    assert cuda.allocated == before


def test_device_memory_does_not_grow_with_the_volume(make, bundle):
    pipeline, cuda, _ = make(Schedule(2))
    before = cuda.allocated
    list(pipeline.run(batches(bundle, (4,) * 9), StageTimes()))
    assert cuda.allocated == before
    footprint = Footprint(BatchLayout.of(bundle.spec), 2, weights=0, workspace=lambda windows: 0)
    assert before - footprint.total_bytes(WINDOWS) == 2 * 8, "but for the first window's number in each slot"


def test_a_memory_limit_lowers_the_batch_and_one_that_is_too_small_is_refused(bundle):
    footprint = Footprint(BatchLayout.of(bundle.spec), 2, weights=50_000_000, workspace=lambda windows: windows * 10**6)
    assert fit_windows(footprint, None, 8) == 8
    for windows in (1, 3, 8):
        assert fit_windows(footprint, footprint.total_bytes(windows), 8) == windows
        assert (
            footprint.total_bytes(fit_windows(footprint, footprint.total_bytes(windows) + 1, 8))
            <= footprint.total_bytes(windows) + 1
        )
    assert fit_windows(footprint, 10**12, 8) == 8
    with pytest.raises(MemoryLimitError, match=r"MB is too small.*--memory-limit \d+ or more") as refused:
        fit_windows(footprint, footprint.total_bytes(1) - 1, 8)
    assert "\n" not in str(refused.value)
