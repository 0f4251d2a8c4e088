"""ONNX Runtime in the CUDA pipeline: its graphs on the pipeline's own addresses, on a device made of threads."""

import numpy as np
import pytest
from random_batches import batches
from simulated_cuda import SimulatedCuda

from ssn.benchmarks.gpu.onnx_stages import OnnxStages
from ssn.core.bundle import load_bundle
from ssn.export.variants import in_half
from ssn.runtime.backend import StageTimes
from ssn.runtime.device_pipeline import DevicePipeline
from ssn.runtime.memory import BatchLayout
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.schedule import Schedule


class Queued:
    """`OnnxStages` on host addresses, each call queued on the simulated stream as CUDA would queue its kernels."""

    def __init__(self, cuda, stages):
        self.cuda, self.stages = cuda, stages

    def encoder(self, slot, windows, stream):
        self.cuda.put(stream, lambda: self.stages.encoder(slot, windows, stream))

    def flow(self, slot, windows, places, stream):
        self.cuda.put(stream, lambda: self.stages.flow(slot, windows, places, stream))


@pytest.fixture(scope="module", params=["tiny_bundle", "thick_bundle"])
def bundle(request):
    return load_bundle(request.getfixturevalue(request.param))


@pytest.fixture
def cuda():
    device = SimulatedCuda(pause=2e-3)
    yield device
    device.close()


@pytest.mark.parametrize("edges", ["fp32", "fp16"])
def test_both_graphs_compute_between_the_buffers_of_the_pipeline(bundle, cuda, edges):
    pytest.importorskip("onnx", reason="onnx is not installed")
    dtype = {"fp32": "float32", "fp16": "float16"}[edges]
    layout = BatchLayout.of(bundle.spec, dtype, dtype)
    stages = OnnxStages(bundle if edges == "fp32" else in_half(bundle, edges), layout, provider="cpu")
    pipeline = DevicePipeline(cuda, layout, 4, Queued(cuda, stages), Schedule(2), graphs=False)
    with OnnxRuntimeBackend(bundle) as backend:
        expected = np.concatenate(list(backend.run(batches(bundle), StageTimes())))
    for _ in range(2):
        given = np.concatenate(list(pipeline.run(batches(bundle), StageTimes())))
        np.testing.assert_allclose(given, expected, atol=1e-5 if edges == "fp32" else 0.1)
    assert "encoder.onnx: Conv" in stages.on_the_cpu()
    stages.close()
