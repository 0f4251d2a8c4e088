"""TensorRT's runtime half on a `SimulatedCuda`: an "engine" is an ONNX graph, and ONNX Runtime computes it.

It is as strict as TensorRT's documentation: a context runs only with a profile, shapes, addresses and enough
memory, and one whose work was captured must not be changed any more.
"""

import enum

import numpy as np
import onnxruntime as ort
from simulated_cuda import array_at


class Logger:
    INTERNAL_ERROR = 0

    def __init__(self, severity):
        self.severity = severity


class IErrorRecorder:
    pass


class ExecutionContextAllocationStrategy(enum.Enum):
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1


class _Config:
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
    cache = None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return object()

    def set_runtime_cache(self, cache):
        self.cache = cache


class _Context:
    def __init__(self, engine):
        self.engine, self.profile, self.frozen = engine, None, False
        self.shapes, self.addresses, self.memory = {}, {}, 0

    def _changed(self):
        assert not self.frozen, "a context whose work was captured was changed"

    def set_optimization_profile_async(self, profile, stream):
        self.profile = profile
        return True

    def set_input_shape(self, name, shape):
        self._changed()
        assert self.profile == 0
        self.shapes[name] = shape
        return name in self.engine.inputs

    def get_tensor_shape(self, name):
        (slices,), (features,) = self.engine.session.get_inputs(), self.engine.session.get_outputs()
        assert name == features.name
        count = self.shapes[slices.name][0]
        return count if slices.shape[0] == features.shape[0] else count // 3, *features.shape[1:]

    def set_tensor_address(self, name, address):
        self._changed()
        self.addresses[name] = address
        return name in (*self.engine.inputs, *self.engine.outputs)

    def update_device_memory_size_for_shapes(self):
        return sum(int(np.prod(shape)) for shape in self.shapes.values()) * 4

    def set_device_memory(self, address, size):
        self._changed()
        self.memory = size

    def execute_async_v3(self, stream):
        engine, module = self.engine, self.engine.module
        assert self.memory >= self.update_device_memory_size_for_shapes(), "too little memory to compute in"
        assert set(self.shapes) == set(engine.inputs)
        assert set(self.addresses) == {*engine.inputs, *engine.outputs}
        self.frozen = module.cuda.capturing

        def compute():
            given = {}
            for name, kind in engine.inputs.items():
                dtype = module.dtypes.get(name, kind)
                given[name] = array_at(self.addresses[name], self.shapes[name], dtype).astype(kind)
            for (name, kind), values in zip(engine.outputs.items(), engine.session.run(None, given), strict=True):
                array_at(self.addresses[name], values.shape, module.dtypes.get(name, kind))[...] = values

        module.cuda.put(module.streams[stream], compute)
        return True


class _Engine:
    def __init__(self, module, data):
        kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        self.module = module
        self.session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
        self.inputs = {tensor.name: kinds[tensor.type] for tensor in self.session.get_inputs()}
        self.outputs = {tensor.name: kinds[tensor.type] for tensor in self.session.get_outputs()}

    def create_runtime_config(self):
        return _Config()

    def create_execution_context(self, config):
        assert config.strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        assert config.dynamic_shapes_kernel_specialization_strategy is DynamicShapesKernelSpecializationStrategy.EAGER
        assert config.cache is not None, "every context would compile its kernels anew"
        return _Context(self)


class EngineInvalidityDiagnostics(enum.IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4


class SimulatedTensorRT:
    """The module. `dtypes` are those of tensors that the engines take in another type than their graphs."""

    __name__ = "tensorrt_rtx"
    Logger = Logger
    IErrorRecorder = IErrorRecorder
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
    EngineInvalidityDiagnostics = EngineInvalidityDiagnostics

    def __init__(self, cuda, version, dtypes):
        self.cuda, self.__version__, self.dtypes = cuda, version, dtypes
        self.deserialised = 0
        module = self

        class Streams:
            def __getitem__(self, handle):
                return next(stream for stream in module.cuda._queues if int(stream) == handle)

        self.streams = Streams()

    def Runtime(self, logger):  # noqa: N802
        assert isinstance(logger, Logger)
        return _Runtime(self)


class _Runtime:
    engine_host_code_allowed = True
    error_recorder = None

    def __init__(self, module):
        self.module = module

    def deserialize_cuda_engine(self, data):
        assert self.engine_host_code_allowed is False, "host code must be off before anything is deserialised"
        self.module.deserialised += 1
        if data[:1] == b"\x08":
            return _Engine(self.module, data)
        assert self.error_recorder.report_error(1, "Error Code 1:\nSerialization") is True
        return None

    def get_engine_validity(self, data):
        return None, 2  # as on a GPU that it does not know
