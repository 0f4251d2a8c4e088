"""TensorRT and TensorRT for RTX: a bundle's engines, run with overlapped copies and CUDA graphs.

Both modules have the same names, so one backend is written against whichever built the engines.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ssn.core.bundle import Bundle
from ssn.core.engine_record import ENCODER_ENGINE, FLOW_ENGINE, EngineEntry, EngineRecord
from ssn.core.engines import read_engine, refusal
from ssn.core.errors import BackendError
from ssn.runtime.backend import Batch, StageTimes
from ssn.runtime.cuda import Cuda
from ssn.runtime.device_pipeline import DevicePipeline, Slot, batch_shapes
from ssn.runtime.memory import MEGABYTE, BatchLayout, Footprint, fit_windows
from ssn.runtime.schedule import DEFAULT_SLOTS, Schedule

# Kernels that TensorRT for RTX has compiled, by module: they must outlive every context, and a second engine or a
# second context of the same shapes need not wait for them again.
_COMPILED: dict[str, Any] = {}


class TensorRTBackend:
    """Two engines, deserialised from verified bytes.

    Parameters
    ----------
    bundle : Bundle
    entry : the engines to run, one of `find_engines(bundle)`
    batch : slices at once; as many as the engines take if not given
    memory_limit : bytes on the device; it lowers the batch
    overlap, graphs : off only to measure what they bring

    Attributes
    ----------
    pipeline : what the engines run in
    peak_bytes : on the device

    Raises
    ------
    BackendError
        If there is no GPU, the engines are for another machine or bundle, or not even one window fits.
    BundleError
        If an engine file was modified.
    """

    name = "tensorrt"

    def __init__(
        self,
        bundle: Bundle,
        entry: EngineEntry,
        *,
        batch: int | None = None,
        memory_limit: int | None = None,
        overlap: bool = True,
        graphs: bool = True,
    ) -> None:
        self._cuda = Cuda()  # first, always: without a device TensorRT's own runtime may crash
        try:
            record, module = _admit(bundle, entry, self._cuda)
            layout = BatchLayout.of(
                bundle.spec, record.inputs[ENCODER_ENGINE][0].dtype, record.outputs[ENCODER_ENGINE][0].dtype
            )
            self._stages = _Engines(module, entry, self._cuda, layout)
            most = record.key.max_windows
            if batch is not None:
                most = min(max(1, batch // layout.window), most)
            schedule = Schedule(DEFAULT_SLOTS if overlap else 1, overlap)
            weights = sum(record.files[name]["bytes"] for name in (ENCODER_ENGINE, FLOW_ENGINE))
            footprint = Footprint(layout, schedule.slots, weights, self._stages.workspace)
            windows = fit_windows(footprint, memory_limit, most)
            self._stages.reserve(windows)
            self.pipeline = DevicePipeline(self._cuda, layout, windows, self._stages, schedule, graphs=graphs)
        except BaseException:
            self._cuda.release()
            raise
        self.max_slices: int | None = windows * layout.window
        self.at_once = 1
        self._record, self._schedule = record, schedule
        self.peak_bytes = footprint.total_bytes(windows)

    def describe(self) -> dict[str, Any]:
        """Say what runs, for the record."""
        key = self._record.key
        return {
            "backend": self.name,
            "module": key.builder,
            "version": key.builder_version,
            "engine": key.slug,
            "precision": key.precision,
            "gpu": self._cuda.device.name,
            "driver": self._cuda.device.driver,
            "batch": self.max_slices,
            "streams": len(self._schedule.lanes),
            "cuda_graphs": self.pipeline.graphs,
            "graph_problem": self.pipeline.graph_problem,
            "device_memory_mb": round(self.peak_bytes / MEGABYTE, 1),
        }

    def run(self, batches: Iterable[Batch], times: StageTimes) -> Generator[NDArray[np.float32], None, None]:
        """Log-likelihood per dimension (L,) of each batch's places, in order."""
        return self.pipeline.run(batches, times)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cuda.drain()
        self._stages.close()  # contexts before the memory that they point to
        self._cuda.release()


def load_module(name: str) -> Any:
    """Import `tensorrt` or `tensorrt_rtx`.

    Raises
    ------
    BackendError
        If it isn't installed or can't be loaded.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        package = name.replace("_", "-")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BackendError(f"{name} cannot be loaded ({reason}); install it with: pip install {package}") from error


def _admit(bundle: Bundle, entry: EngineEntry, cuda: Cuda) -> tuple[EngineRecord, Any]:
    """Record and module of engines that may run here; nothing of them has been deserialised."""
    if entry.record is None:
        raise BackendError(entry.problem or f"{entry.folder}: has no record")
    module = load_module(entry.record.key.builder)
    reason = refusal(entry.record, bundle, cuda.device, entry.record.key.builder, module.__version__)
    if reason is not None:
        raise BackendError(reason)
    return entry.record, module


class _Engines:
    """Encoder and flow engine, and a context for each shape in each slot.

    A captured graph is bound to its context's shapes and addresses, so each has its own; they share one
    workspace, because all of them run on one stream.
    """

    def __init__(self, module: Any, entry: EngineEntry, cuda: Cuda, layout: BatchLayout) -> None:
        self._module, self._cuda, self._layout = module, cuda, layout
        self._logger = _last_error_logger(module)
        self._runtime = module.Runtime(self._logger)
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
            reasons = ", ".join([self._logger.last, *self._diagnoses(data)])
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
            raise BackendError(f"{name}: {error} ({self._logger.last})") from error
        if not ready:
            raise BackendError(f"{name}: no execution context ({self._logger.last})")
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
                raise BackendError(f"{name}: does not take {tensor} of shape {shape} ({self._logger.last})")
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
                    raise BackendError(f"{name}: has no tensor {tensor} ({self._logger.last})")
            self._contexts[key] = context
        if not context.execute_async_v3(int(stream)):
            raise BackendError(f"{name}: did not run ({self._logger.last})")

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


def _last_error_logger(module: Any) -> Any:
    """Make a TensorRT logger that prints nothing and keeps the last error, for one line to the user."""

    class LastError(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.last = "it gave no reason"

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR):
                self.last = " ".join(message.split())[:300]

    return LastError()
