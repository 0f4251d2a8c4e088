"""What the CUDA pipeline runs when engines compute: two TensorRT engines, a context for each shape in each slot."""

from __future__ import annotations

from typing import Any

from ssn.core.engine_record import ENCODER_ENGINE, FLOW_ENGINE, EngineEntry
from ssn.core.engines import read_engine
from ssn.core.errors import BackendError
from ssn.runtime.cuda import Cuda
from ssn.runtime.device_pipeline import Slot, batch_shapes
from ssn.runtime.memory import BatchLayout

# Kernels that TensorRT for RTX has compiled, by module: they must outlive every context, and a second engine or a
# second context of the same shapes need not wait for them again.
_COMPILED: dict[str, Any] = {}


class EngineStages:
    """Encoder and flow engine, and a context for each shape in each slot.

    A captured graph is bound to its context's shapes and addresses, so each has its own; they share one
    workspace, because all of them run on one stream.
    """

    def __init__(self, module: Any, entry: EngineEntry, cuda: Cuda, layout: BatchLayout) -> None:
        self._module, self._cuda, self._layout = module, cuda, layout
        # Its own logger and not one of ours: it would call Python for every message, and from threads of its own while
        # this one waits for them.
        self._logger = module.Logger(module.Logger.INTERNAL_ERROR)
        self._runtime = module.Runtime(self._logger)
        self._errors = last_error_recorder(module)
        self._runtime.error_recorder = self._errors  # engines and contexts inherit it
        self._runtime.engine_host_code_allowed = False
        self._stream = cuda.stream()
        self._engines = {name: self._deserialise(entry, name) for name in (ENCODER_ENGINE, FLOW_ENGINE)}
        self._contexts: dict[tuple[str, int, int, int], Any] = {}
        self._probes = {name: self._new_context(name) for name in self._engines}
        self._workspace, self._workspace_bytes = 0, 0

    def _deserialise(self, entry: EngineEntry, name: str) -> Any:
        data = read_engine(entry, name)
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            reasons = ", ".join([self._errors.last, *self._diagnoses(data)])
            raise BackendError(f"{entry.folder / name}: {self._module.__name__} refuses it ({reasons})")
        return engine

    def _diagnoses(self, data: bytes) -> list[str]:
        """Say what TensorRT for RTX finds wrong with an engine on this GPU, in its own words."""
        if not hasattr(self._runtime, "get_engine_validity"):
            return []
        found = int(self._runtime.get_engine_validity(data)[1])
        return [name for name, bit in self._module.EngineInvalidityDiagnostics.__members__.items() if found & int(bit)]

    def _new_context(self, name: str) -> Any:
        module, engine = self._module, self._engines[name]
        user_managed = module.ExecutionContextAllocationStrategy.USER_MANAGED
        kernels = getattr(module, "DynamicShapesKernelSpecializationStrategy", None)
        if kernels is None:
            context = engine.create_execution_context(user_managed)
        else:
            # TensorRT for RTX would swap kernels later on, under a graph that was captured with the first ones.
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(user_managed)
            config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
            if module.__name__ not in _COMPILED:
                _COMPILED[module.__name__] = config.create_runtime_cache()
            config.set_runtime_cache(_COMPILED[module.__name__])
            context = engine.create_execution_context(config)
        try:
            ready = context is not None and context.set_optimization_profile_async(0, int(self._stream))
        except RuntimeError as error:  # the binding's own way to say no
            raise BackendError(f"{name}: {error} ({self._errors.last})") from error
        if not ready:
            raise BackendError(f"{name}: no execution context ({self._errors.last})")
        self._cuda.synchronize_stream(self._stream)
        return context

    def _set_shapes(self, context: Any, name: str, windows: int, places: int) -> int:
        """Fix a context's input shapes; returns the bytes that it computes in."""
        layout = self._layout
        shapes: dict[str, tuple[int, ...]] = (
            {"slices": (windows * layout.each, 1, layout.plane, layout.plane)}
            if name == ENCODER_ENGINE
            else {
                "features": (windows, layout.channels, layout.cells, layout.cells),
                "places": (places,),
                "first": (1,),
            }
        )
        for tensor, shape in shapes.items():
            if not context.set_input_shape(tensor, shape):
                raise BackendError(f"{name}: does not take {tensor} of shape {shape} ({self._errors.last})")
        if name == ENCODER_ENGINE:  # TensorRT writes what it computes, however little memory lies there for it
            expected = (windows, layout.channels, layout.cells, layout.cells)
            given = tuple(context.get_tensor_shape("features"))
            if given != expected:
                raise BackendError(f"{name}: gives features of shape {given} where the bundle says {expected}")
        return int(context.update_device_memory_size_for_shapes())

    def workspace(self, windows: int) -> int:
        """Bytes that batches of up to `windows` windows are computed in."""
        return max(
            self._set_shapes(self._probes[name], name, part, places)
            for part, places in batch_shapes(windows, self._layout.cells)
            for name in self._engines
        )

    def reserve(self, windows: int) -> None:
        """Allocate the workspace for batches of up to `windows` windows."""
        self._workspace_bytes = self.workspace(windows)
        self._workspace = self._cuda.device_buffer(self._workspace_bytes)

    def _run(self, key: tuple[str, int, int, int], addresses: dict[str, int], stream: Any) -> None:
        name, _, windows, places = key
        context = self._contexts.get(key)
        if context is None:
            context = self._new_context(name)
            self._set_shapes(context, name, windows, places)
            context.set_device_memory(self._workspace, self._workspace_bytes)
            for tensor, address in addresses.items():
                if not context.set_tensor_address(tensor, address):
                    raise BackendError(f"{name}: has no tensor {tensor} ({self._errors.last})")
            self._contexts[key] = context
        if not context.execute_async_v3(int(stream)):
            raise BackendError(f"{name}: did not run ({self._errors.last})")

    def encoder(self, slot: Slot, windows: int, stream: Any) -> None:
        """Queue the encoder."""
        addresses = {"slices": slot.device_slices, "features": slot.device_features}
        self._run((ENCODER_ENGINE, slot.number, windows, 0), addresses, stream)

    def flow(self, slot: Slot, windows: int, places: int, stream: Any) -> None:
        """Queue the flow."""
        addresses = {
            "features": slot.device_features,
            "places": slot.device_places,
            "first": slot.device_first,
            "log_likelihood": slot.device_values,
        }
        self._run((FLOW_ENGINE, slot.number, windows, places), addresses, stream)

    def close(self) -> None:
        """Let go of contexts, engines and runtime, in this order."""
        self._contexts.clear()
        self._probes.clear()
        self._engines.clear()
        self._runtime = None


def last_error_recorder(module: Any) -> Any:
    """Make a TensorRT error recorder that keeps the last error, for one line to the user."""

    class LastError(module.IErrorRecorder):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IErrorRecorder.__init__(self)
            self.clear()

        def clear(self) -> None:
            self.code, self.last = None, "it gave no reason"

        def report_error(self, code: Any, description: str) -> bool:
            self.code, self.last = code, " ".join(description.split())[:300]
            return True  # no error is one to go on after

        def num_errors(self) -> int:
            return int(self.code is not None)

        def get_error_code(self, index: int) -> Any:
            return self.code

        def get_error_desc(self, index: int) -> str:
            return self.last

        def has_overflowed(self) -> bool:
            return False

    return LastError()
