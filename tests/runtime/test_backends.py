import shutil
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from random_batches import batches

from ssn.core.bundle import FLOW_FILE, load_bundle
from ssn.core.engine_record import Device
from ssn.core.errors import BackendError, BundleError
from ssn.core.geometry import GridConfig
from ssn.runtime.backend import Batch, StageTimes
from ssn.runtime.cuda import Cuda, find_device
from ssn.runtime.onnxruntime import OnnxRuntimeBackend


def test_openvino_says_what_onnxruntime_says(bundle):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from ssn.runtime.openvino import OpenVinoBackend

    times = StageTimes()
    with OnnxRuntimeBackend(bundle, 1) as ort, OpenVinoBackend(bundle, 1) as openvino:
        expected = list(ort.run(batches(bundle, (1, 2, 1)), times))
        given = list(openvino.run(batches(bundle, (1, 2, 1)), StageTimes()))
        assert openvino.describe()["precision"] == "fp32"
    for one, other in zip(expected, given, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4)
    assert set(times.seconds) == {"encoder", "flow"}


def test_openvino_reads_only_what_was_hashed(tiny_bundle, tmp_path):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from ssn.runtime.openvino import OpenVinoBackend

    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    with (folder / FLOW_FILE).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match="modified"):
        OpenVinoBackend(load_bundle(folder))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"thick": "slab"}, "features of 3 slices are"),
        ({"features": 3}, "features of 3 slices are"),
        ({"cells": 24}, "features of 3 slices are"),
        ({"grid": GridConfig(plane=96)}, r"takes slices of \(192, 192\), not \(96, 96\)"),
    ],
)
def test_a_manifest_that_does_not_describe_its_graphs_is_refused(bundle, name, changed, said):
    """A window taken for a slice would give each place another place's features, and a map without any error."""
    pytest.importorskip(name, reason=f"{name} is not installed")
    backends = {"onnxruntime": "OnnxRuntimeBackend", "openvino": "OpenVinoBackend"}
    kind = getattr(import_module(f"ssn.runtime.{name}"), backends[name])
    other = replace(bundle, spec=replace(bundle.spec, **changed))
    spec = other.spec if "grid" in changed else bundle.spec
    slices = np.zeros((spec.grid.window, 1, spec.grid.plane, spec.grid.plane), np.float32)
    with pytest.raises(BundleError, match=said), kind(other, 1) as backend:
        list(backend.run([Batch(slices, np.arange(3), 0)], StageTimes()))


def test_impossible_threads_and_providers_are_refused(bundle):
    with pytest.raises(BackendError, match="0 threads"):
        OnnxRuntimeBackend(bundle, 0)
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(BackendError, match="onnxruntime-gpu"):
        OnnxRuntimeBackend(bundle, provider="cuda")


def test_without_a_gpu_the_reason_is_one_line():
    device, reason = find_device()
    if device is not None:
        pytest.skip("there is a GPU here")
    assert reason
    assert "\n" not in reason
    with pytest.raises(BackendError, match="no GPU to run on"):
        Cuda()


def test_every_cuda_call_is_one_that_the_binding_takes():
    """Without a driver each call must come back with CUDA's own error, not with one of Python's."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if find_device()[0] is not None:
        pytest.skip("there is a GPU here")
    cuda = Cuda.__new__(Cuda)
    cuda.device, cuda._rt, cuda._stack = Device("none", "00", "", 0), runtime, ExitStack()
    cuda.released = False
    stream, event, graph = runtime.cudaStream_t(0), runtime.cudaEvent_t(0), runtime.cudaGraphExec_t(0)
    array = np.zeros(4, np.float32)
    for call in (
        cuda.stream,
        cuda.event,
        lambda: cuda.device_buffer(16),
        lambda: cuda.pinned((4,), np.float16),
        lambda: cuda.copy_in(1, array, stream),
        lambda: cuda.copy_out(array, 1, stream),
        lambda: cuda.record(event, stream),
        lambda: cuda.wait(stream, event),
        lambda: cuda.synchronize(event),
        lambda: cuda.synchronize_stream(stream),
        lambda: cuda.seconds(event, event),
        lambda: cuda.capture(stream, lambda: None),
        lambda: cuda.launch(graph, stream),
        cuda.memory,
    ):
        with pytest.raises(BackendError, match="cudaErrorInsufficientDriver") as refused:
            call()
        assert "\n" not in str(refused.value)
    cuda.release()
    cuda.release()
    assert cuda.released
