"""What only a GPU can show. Every test skips, with its reason, where there is none."""

import shutil

import numpy as np
import pytest
from brains import brain_file

from ssn.core.bundle import load_bundle
from ssn.core.engines import find_engines
from ssn.core.errors import SsnError
from ssn.core.volume import read_volume
from ssn.runtime.backend import StageTimes, plan_batches, run_batches
from ssn.runtime.choose import Request, open_backend
from ssn.runtime.cuda import Cuda, find_device
from ssn.runtime.device_pipeline import DevicePipeline
from ssn.runtime.memory import BatchLayout
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.schedule import Schedule
from ssn.runtime.self_aligned import SelfAlignedBackend, whitening_of
from ssn.runtime.tensorrt import TensorRTBackend

DEVICE, REASON = find_device()
pytestmark = pytest.mark.skipif(DEVICE is None, reason=f"needs a GPU: {REASON}")
LIMIT = 0.1  # of a log-likelihood per dimension, FP16 engines; the bound of ssn-export check


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return load_bundle(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def stack(bundle, tmp_path):
    spec = bundle.spec
    return spec.cut(read_volume(brain_file(tmp_path / "scan.nii")))


@pytest.fixture
def expected(bundle, stack):
    with OnnxRuntimeBackend(bundle) as backend:
        return run_batches(backend, stack, bundle.spec.occupancy, 24, StageTimes())[1]


@pytest.fixture
def engines(bundle, tmp_path):
    """The bundle with engines for this GPU."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    from ssn.export.build import BuildOptions, build_engines
    from ssn.export.parity import prepare

    try:
        build_engines(bundle, [prepare(bundle, brain_file(tmp_path / "scan.nii"))], BuildOptions(), device=DEVICE)
    except SsnError as error:
        pytest.skip(f"no TensorRT engine for this GPU: {error}")
    return bundle


def test_copies_events_and_graphs_do_what_they_are_told():
    with Cuda() as cuda:
        source, target = cuda.pinned((1000,), np.float32), cuda.pinned((1000,), np.float32)
        there, stream = cuda.device_buffer(4000), cuda.stream()
        begin, end = cuda.event(), cuda.event()

        def queue():
            cuda.copy_in(there, source, stream)
            cuda.copy_out(target, there, stream)

        source[:] = 1
        cuda.record(begin, stream)
        queue()
        cuda.record(end, stream)
        cuda.synchronize(end)
        assert (target == 1).all()
        assert cuda.seconds(begin, end) > 0
        graph = cuda.capture(stream, queue)
        source[:] = 2
        cuda.synchronize_stream(stream)
        assert (target == 1).all(), "nothing of a graph runs while it is captured"
        cuda.launch(graph, stream)
        cuda.synchronize_stream(stream)
        assert (target == 2).all()


def test_everything_is_given_back_also_after_an_error_and_twice():
    with Cuda() as outer:
        free = outer.memory()[0]
        with pytest.raises(KeyboardInterrupt), Cuda() as cuda:
            cuda.device_buffer(300 * 2**20)
            assert outer.memory()[0] < free
            raise KeyboardInterrupt
        cuda.release()
        assert outer.memory()[0] >= free - 2**20


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("graphs", [True, False])
def test_engines_say_what_the_cpu_says(engines, stack, expected, overlap, graphs):
    (entry,) = find_engines(engines)
    with TensorRTBackend(engines, entry, overlap=overlap, graphs=graphs) as backend:
        for _ in range(2):
            _, given = run_batches(backend, stack, engines.spec.occupancy, 24, StageTimes())
            assert np.abs(given - expected).max() < LIMIT
        assert backend.describe()["cuda_graphs"] == graphs, "a capture failed"


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("graphs", [True, False])
def test_onnxruntime_in_the_pipeline_says_what_the_cpu_says(bundle, stack, expected, overlap, graphs):
    pytest.importorskip("onnx", reason="onnx is not installed")
    from ssn.benchmarks.gpu.onnx_stages import OnnxStages
    from ssn.export.variants import in_half

    half = in_half(bundle, edges="fp16")
    layout = BatchLayout.of(bundle.spec, "float16", "float16")
    with Cuda() as cuda:
        stages = OnnxStages(half, layout, graphs=graphs)
        pipeline = DevicePipeline(cuda, layout, 4, stages, Schedule(3 if overlap else 1, overlap), graphs=False)
        for _ in range(3):
            given = run_batches(pipeline, stack, bundle.spec.occupancy, 4 * layout.window, StageTimes())[1]
            assert np.abs(given - expected).max() < LIMIT
        cuda.drain()
        stages.close()


def test_encoder_and_flow_apart_say_what_the_cpu_says(bundle, stack):
    pytest.importorskip("onnx", reason="onnx is not installed")
    from ssn.benchmarks.gpu.onnx_stages import OnnxStages
    from ssn.export.variants import in_half

    layout = BatchLayout.of(bundle.spec, "float16", "float16")
    batches = list(plan_batches(stack, bundle.spec.occupancy, 4 * layout.window))
    with OnnxRuntimeBackend(bundle) as reference:
        features = list(reference.features(batches))
        expected = np.concatenate(list(reference.scores(features, batches)))
    with Cuda() as cuda:
        stages = OnnxStages(in_half(bundle, edges="fp16"), layout, graphs=False)
        pipeline = DevicePipeline(cuda, layout, 4, stages, Schedule(3), graphs=False)
        for _ in range(2):
            found = list(pipeline.features(batches))
            for given, wanted in zip(found, features, strict=True):
                assert np.abs(given - wanted).max() < 0.02 * np.abs(wanted).max()
            scores = np.concatenate(list(pipeline.scores(found, batches)))
            assert np.abs(scores - expected).max() < LIMIT
        cuda.drain()
        stages.close()


def test_an_aligned_volume_gets_from_engines_what_it_gets_from_the_cpu(engines, stack):
    (entry,), whitening = find_engines(engines), whitening_of(engines)
    with TensorRTBackend(engines, entry) as backend, OnnxRuntimeBackend(engines) as reference:
        given, wanted = (
            run_batches(SelfAlignedBackend(engines, whitening, one), stack, engines.spec.occupancy, 24, StageTimes())[1]
            for one in (backend, reference)
        )
    assert np.abs(given - wanted).mean() < LIMIT


def test_auto_takes_the_engine(engines):
    with open_backend(engines, Request()).backend as backend:
        assert backend.describe()["backend"] == "tensorrt"


def test_device_memory_does_not_grow_with_the_number_of_volumes(engines, stack):
    (entry,) = find_engines(engines)
    with TensorRTBackend(engines, entry) as backend, Cuda() as cuda:
        for _ in range(2):
            run_batches(backend, stack, engines.spec.occupancy, 24, StageTimes())
        free = cuda.memory()[0]
        for _ in range(5):
            run_batches(backend, stack, engines.spec.occupancy, 24, StageTimes())
        assert cuda.memory()[0] >= free - 2**20


def test_onnxruntime_with_cuda_says_what_the_cpu_says(bundle, stack, expected):
    try:
        backend = OnnxRuntimeBackend(bundle, provider="cuda")
    except SsnError as error:
        pytest.skip(str(error))
    with backend:
        _, given = run_batches(backend, stack, bundle.spec.occupancy, 24, StageTimes())
    assert np.abs(given - expected).max() < 0.01


@pytest.mark.parametrize("graphs", [True, False])
def test_the_pipeline_over_torch_says_what_the_cpu_says(tiny_detector, bundle, stack, expected, graphs, monkeypatch):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    from ssn.benchmarks.gpu.detector import TorchDetector, TorchStages

    layout = BatchLayout.of(bundle.spec)
    batches = list(plan_batches(stack, bundle.spec.occupancy, 24))
    with Cuda() as cuda:
        stages = TorchStages(TorchDetector(tiny_detector, torch.float32), layout)
        pipeline = DevicePipeline(cuda, layout, 8, stages, Schedule(), graphs=graphs)
        for _ in range(2):
            given = np.concatenate(list(pipeline.run(batches, StageTimes())))
            assert np.abs(given - expected).max() < 0.01
        assert pipeline.graphs == graphs, pipeline.graph_problem


def test_the_fused_trunk_says_what_the_trunk_says(monkeypatch):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    from ssn.benchmarks.gpu.fused import FusedEncoder
    from ssn.train.encoder import PAPER, build_encoder

    torch.manual_seed(0)
    encoder = build_encoder(PAPER, "none")
    slices = torch.rand(3, 1, 192, 192)
    with torch.inference_mode():
        wanted = encoder(slices)
        for dtype, limit in ((torch.float32, 1e-4), (torch.float16, 1e-2)):
            fused = FusedEncoder(encoder, compiled=True).to("cuda", dtype).to(memory_format=torch.channels_last)
            given = fused(slices.to("cuda", dtype))
            for one, other in zip(given, wanted, strict=True):
                assert (one.float().cpu() - other).norm() < limit * other.norm()


def test_kernels_are_named_with_their_times():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    from ssn.benchmarks.gpu.kernels import kernel_times

    matrix = torch.rand(1024, 1024, device="cuda")
    found = kernel_times(lambda: matrix @ matrix)
    assert found["kernels_ms"] > 0
    assert sum(kernel["share"] for kernel in found["kernels"]) > 0.9
