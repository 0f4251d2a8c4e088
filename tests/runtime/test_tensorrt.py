"""The TensorRT backend's own code, on a simulated device and a simulated TensorRT. The real ones: tests/gpu."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from brains import brain_file
from simulated_cuda import SimulatedCuda
from simulated_tensorrt import SimulatedTensorRT
from written_engines import GPU, VERSION, write

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, load_bundle
from ssn.core.engine_record import ENCODER_ENGINE, FLOW_ENGINE
from ssn.core.engines import find_engines
from ssn.core.errors import BackendError, BundleError, MemoryLimitError
from ssn.core.volume import read_volume
from ssn.runtime import tensorrt
from ssn.runtime.backend import StageTimes, run_batches
from ssn.runtime.engine_stages import last_error_recorder
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.self_aligned import SelfAlignedBackend, whitening_of
from ssn.runtime.tensorrt import TensorRTBackend


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return load_bundle(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def here(monkeypatch):
    """A machine with a GPU and TensorRT for RTX."""
    cuda = SimulatedCuda(seed=5, pause=2e-3)
    cuda.device = GPU
    module = SimulatedTensorRT(cuda, VERSION, {"slices": np.float16, "features": np.float16})
    monkeypatch.setattr(tensorrt, "Cuda", lambda: cuda)
    monkeypatch.setattr(tensorrt, "load_module", lambda name: module)
    yield cuda, module
    cuda.release()


def entry_for(bundle, **key):
    write(bundle, blobs={ENCODER_ENGINE: bundle.read(ENCODER_FILE), FLOW_ENGINE: bundle.read(FLOW_FILE)}, **key)
    (entry,) = find_engines(bundle)
    return entry


def stack_for(bundle, tmp_path):
    spec = bundle.spec
    return spec.cut(read_volume(brain_file(tmp_path / "scan.nii")))


@pytest.mark.parametrize("changed", [{"features": 3}, {"thick": "slab"}, {"cells": 24}])
def test_an_engine_whose_output_would_not_fit_its_memory_does_not_run(bundle, here, changed):
    entry = entry_for(bundle)
    other = replace(bundle, spec=replace(bundle.spec, **changed))
    with pytest.raises(BackendError, match="where the bundle says"):
        TensorRTBackend(other, entry)


@pytest.mark.parametrize("switches", [(True, True), (False, False)], ids=["overlap and graphs", "neither"])
def test_a_volume_gets_the_values_of_the_cpu(bundle, here, tmp_path, switches):
    stack = stack_for(bundle, tmp_path)
    overlap, graphs = switches
    with TensorRTBackend(bundle, entry_for(bundle), overlap=overlap, graphs=graphs) as backend:
        places, given = run_batches(backend, stack, bundle.spec.occupancy, 999, StageTimes())
        said = backend.describe()
    with OnnxRuntimeBackend(bundle) as reference:
        wanted_places, wanted = run_batches(reference, stack, bundle.spec.occupancy, 24, StageTimes())
    np.testing.assert_array_equal(places, wanted_places)
    np.testing.assert_allclose(given, wanted, atol=0.02)  # FP16 at the edges
    assert said["streams"] == (3 if overlap else 1)
    assert said["cuda_graphs"] == graphs
    assert said["batch"] == 24, "never more than the engines were built for"
    assert here[0].released


def test_an_fp32_engine_takes_fp32(bundle, here, tmp_path):
    here[1].dtypes = {}
    stack = stack_for(bundle, tmp_path)
    with TensorRTBackend(bundle, entry_for(bundle, precision="fp32")) as backend:
        _, given = run_batches(backend, stack, bundle.spec.occupancy, 24, StageTimes())
    with OnnxRuntimeBackend(bundle) as reference:
        _, wanted = run_batches(reference, stack, bundle.spec.occupancy, 24, StageTimes())
    np.testing.assert_allclose(given, wanted, atol=1e-4)


def test_an_aligned_volume_gets_the_values_of_the_cpu(bundle, here, tmp_path):
    stack, whitening = stack_for(bundle, tmp_path), whitening_of(bundle)
    with TensorRTBackend(bundle, entry_for(bundle)) as backend:
        aligned = SelfAlignedBackend(bundle, whitening, backend)
        _, given = run_batches(aligned, stack, bundle.spec.occupancy, 999, StageTimes())
        assert aligned.describe()["streams"] == 3
        assert aligned.max_slices == backend.max_slices
    with OnnxRuntimeBackend(bundle) as reference:
        aligned = SelfAlignedBackend(bundle, whitening, reference)
        _, wanted = run_batches(aligned, stack, bundle.spec.occupancy, 24, StageTimes())
        _, plain = run_batches(reference, stack, bundle.spec.occupancy, 24, StageTimes())
    assert np.abs(given - wanted).mean() < 0.02 < 0.2 < np.abs(plain - wanted).mean(), "FP16 at the edges"


def test_the_memory_limit_lowers_the_batch_and_is_kept(bundle, here, tmp_path):
    entry = entry_for(bundle)
    with TensorRTBackend(bundle, entry, batch=3) as smallest:
        least = smallest.peak_bytes
        assert smallest.max_slices == 3
    here[0].__init__(seed=1)
    here[0].device = GPU
    limit = least + 12 * 10**6
    with TensorRTBackend(bundle, entry, memory_limit=limit) as backend:
        assert 3 < backend.max_slices < 24
        weights = sum(entry.record.files[name]["bytes"] for name in (ENCODER_ENGINE, FLOW_ENGINE))
        assert here[0].allocated + weights <= limit + 100
    here[0].__init__(seed=1)
    here[0].device = GPU
    with pytest.raises(MemoryLimitError, match="--memory-limit"):
        TensorRTBackend(bundle, entry, memory_limit=least - 1)
    assert here[0].released, "what was taken before the refusal was given back"


def test_an_engine_for_another_gpu_is_refused_before_tensorrt_sees_it(bundle, here):
    with pytest.raises(BackendError, match="was built for NVIDIA A100"):
        TensorRTBackend(bundle, entry_for(bundle, gpu="NVIDIA A100"))
    assert here[1].deserialised == 0
    assert here[0].released


def test_a_modified_engine_is_refused_before_tensorrt_sees_it(bundle, here):
    entry = entry_for(bundle)
    with (entry.folder / ENCODER_ENGINE).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match="modified"):
        TensorRTBackend(bundle, entry)
    assert here[1].deserialised == 0
    assert here[0].released


def test_what_tensorrt_refuses_is_one_clear_line(bundle, here):
    write(bundle)
    (entry,) = find_engines(bundle)
    with pytest.raises(
        BackendError, match=r"encoder.engine: tensorrt_rtx refuses it \(Error Code 1: Serialization, UNSUPPORTED_CC\)"
    ) as refused:
        TensorRTBackend(bundle, entry)
    assert "\n" not in str(refused.value)


def test_a_binding_that_raises_is_one_clear_line_too(bundle, here, monkeypatch):
    def refuse(self, profile, stream):
        raise RuntimeError("Error in set optimization profile async.")

    monkeypatch.setattr("simulated_tensorrt._Context.set_optimization_profile_async", refuse)
    with pytest.raises(BackendError, match=r"encoder.engine: Error in set optimization profile"):
        TensorRTBackend(bundle, entry_for(bundle))
    assert here[0].released


def test_ctrl_c_in_the_middle_gives_everything_back(bundle, here, tmp_path):
    stack = stack_for(bundle, tmp_path)

    def interrupt(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), TensorRTBackend(bundle, entry_for(bundle)) as backend:
        run_batches(backend, stack, bundle.spec.occupancy, 12, StageTimes(), interrupt)
    assert here[0].released
    here[0].release()  # twice is harmless


def test_the_simulation_has_only_names_that_tensorrt_has():
    real = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    from simulated_tensorrt import _Config, _Context, _Engine, _Runtime

    for simulated, genuine in (
        (_Context, real.IExecutionContext),
        (_Engine, real.ICudaEngine),
        (_Config, real.IRuntimeConfig),
        (_Runtime, real.Runtime),
    ):
        used = {name for name in vars(simulated) if not name.startswith("_")} - {"cache"}
        assert used <= set(dir(genuine))
    assert int(real.EngineInvalidityDiagnostics.UNSUPPORTED_CC) == 2
    assert real.ExecutionContextAllocationStrategy.USER_MANAGED
    assert real.DynamicShapesKernelSpecializationStrategy.EAGER
    assert real.Logger(real.Logger.INTERNAL_ERROR)


def test_the_real_tensorrt_tells_its_errors_to_our_recorder():
    real = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    runtime = real.Runtime(real.Logger(real.Logger.INTERNAL_ERROR))
    runtime.error_recorder = recorder = last_error_recorder(real)
    assert recorder.num_errors() == 0
    assert runtime.deserialize_cuda_engine(b"no engine" * 100) is None
    assert recorder.num_errors() == 1
    assert "Error Code" in recorder.last
    assert "\n" not in recorder.last
