"""CUDA, as much of it as a pipeline needs, over NVIDIA's own binding: streams, events, memory, graphs.

The binding is `cuda-bindings`. Nothing of it is imported until a device is asked for, and a machine without
a GPU, a driver or the binding is told apart from one that fails.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ssn.core.engine_record import Device
from ssn.core.errors import BackendError, first_line, installing

# cudaErrorInsufficientDriver (also: no driver), cudaErrorNoDevice; and no binding has an error number at all.
_NO_DRIVER, _NO_DEVICE, _OUT_OF_MEMORY = 35, 100, 2
_INSTALL = installing("gpu")


def _runtime() -> Any:
    from cuda.bindings import runtime

    return runtime


def _driver_version() -> str:
    """NVIDIA driver's own version, as `nvidia-smi` prints it; empty where the kernel doesn't say."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return ""
    return next((word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()), "")


def find_device() -> tuple[Device | None, str]:
    """Look for a GPU. Returns the device, or None and the reason, in words; it never raises."""
    try:
        runtime = _runtime()
        code, count = runtime.cudaGetDeviceCount()
    except (ImportError, RuntimeError) as error:
        reason = first_line(error)
        return None, f"NVIDIA's CUDA binding is not usable ({reason}); install it with: {_INSTALL}"
    if int(code) == _NO_DRIVER:
        return None, "no NVIDIA driver, or one older than the CUDA binding needs"
    if int(code) == _NO_DEVICE or (int(code) == 0 and count == 0):
        return None, "no NVIDIA GPU"
    if int(code) or count < 1:
        return None, f"CUDA does not start ({_explain(runtime, code)})"
    code, properties = runtime.cudaGetDeviceProperties(0)
    if int(code):
        return None, f"the GPU does not answer ({_explain(runtime, code)})"
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    _, version = runtime.cudaDriverGetVersion()
    cuda = f"CUDA {version // 1000}.{version % 1000 // 10}"
    device = Device(
        name=name.rstrip("\0"),
        compute_capability=f"{properties.major}{properties.minor}",
        driver=f"{_driver_version()} ({cuda})".strip(),
        memory_bytes=int(properties.totalGlobalMem),
    )
    return device, ""


def _explain(runtime: Any, code: Any) -> str:
    try:
        name, text = (call(code)[1] for call in (runtime.cudaGetErrorName, runtime.cudaGetErrorString))
        return f"{name.decode()}: {text.decode()}"
    except (AttributeError, RuntimeError, TypeError):
        return f"error {int(code)}"


class Cuda:
    """What was taken from one device; all of it goes back when the block ends, in reverse order.

    Raises
    ------
    BackendError
        If there is no device, and from every method whose CUDA call fails.
    """

    def __init__(self) -> None:
        device, reason = find_device()
        if device is None:
            raise BackendError(f"no GPU to run on: {reason}")
        self.device = device
        self._rt = _runtime()
        self._stack = ExitStack()
        self.released = False
        self._check(self._rt.cudaSetDevice(0), "cudaSetDevice")

    def _check(self, result: tuple[Any, ...], what: str) -> Any:
        code, *values = result
        if int(code):
            hint = "; lower --batch or --memory-limit" if int(code) == _OUT_OF_MEMORY else ""
            raise BackendError(f"{self.device.name}: {what} failed ({_explain(self._rt, code)}){hint}")
        return values[0] if len(values) == 1 else tuple(values)

    def stream(self) -> Any:
        """Make a stream that does not wait for the default stream."""
        stream = self._check(self._rt.cudaStreamCreateWithFlags(self._rt.cudaStreamNonBlocking), "making a stream")
        self._stack.callback(self._rt.cudaStreamDestroy, stream)
        return stream

    def event(self) -> Any:
        """Make an event that takes times."""
        event = self._check(self._rt.cudaEventCreateWithFlags(self._rt.cudaEventDefault), "making an event")
        self._stack.callback(self._rt.cudaEventDestroy, event)
        return event

    def device_buffer(self, size: int) -> int:
        """Address of `size` bytes on the device."""
        address = int(self._check(self._rt.cudaMalloc(max(size, 1)), f"taking {size / 1e6:.0f} MB on the GPU"))
        self._stack.callback(self._rt.cudaFree, address)
        return address

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Array of zeros in pinned host memory, which alone is copied without waiting. It dies with this object."""
        kind = np.dtype(dtype)
        size = max(int(np.prod(shape)) * kind.itemsize, 1)
        flags = self._rt.cudaHostAllocDefault
        address = int(self._check(self._rt.cudaHostAlloc(size, flags), f"pinning {size / 1e6:.0f} MB"))
        self._stack.callback(self._rt.cudaFreeHost, address)
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        array = memory[: int(np.prod(shape)) * kind.itemsize].view(kind).reshape(shape)
        array[...] = 0
        return array

    def copy_in(self, address: int, source: NDArray[Any], stream: Any) -> None:
        """Queue a copy of a contiguous pinned array to the device."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(
            self._rt.cudaMemcpyAsync(address, source.ctypes.data, source.nbytes, kind, stream), "copy to the GPU"
        )

    def copy_out(self, target: NDArray[Any], address: int, stream: Any) -> None:
        """Queue a copy from the device to a contiguous pinned array."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(
            self._rt.cudaMemcpyAsync(target.ctypes.data, address, target.nbytes, kind, stream), "copy from the GPU"
        )

    def record(self, event: Any, stream: Any) -> None:
        """Queue an event: it has happened when all that was queued before has ended."""
        self._check(self._rt.cudaEventRecord(event, stream), "recording an event")

    def wait(self, stream: Any, event: Any) -> None:
        """Let what is queued on a stream from here on wait for an event's latest record."""
        self._check(self._rt.cudaStreamWaitEvent(stream, event, 0), "waiting for an event")

    def synchronize(self, event: Any) -> None:
        """Wait on the host for an event. An error of the work before it is raised here."""
        self._check(self._rt.cudaEventSynchronize(event), "the work on the GPU")

    def synchronize_stream(self, stream: Any) -> None:
        """Wait on the host for all that is queued on a stream."""
        self._check(self._rt.cudaStreamSynchronize(stream), "the work on the GPU")

    def seconds(self, begin: Any, end: Any) -> float:
        """Time between two events that have happened."""
        return float(self._check(self._rt.cudaEventElapsedTime(begin, end), "reading an event")) / 1000

    def capture(self, stream: Any, queue: Callable[[], None]) -> Any:
        """Record what `queue` queues on a stream into a graph that can be launched; nothing of it runs now."""
        # Thread-local: other threads (a reader of the next volume) must not be able to spoil the capture.
        mode = self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check(self._rt.cudaStreamBeginCapture(stream, mode), "graph capture")
        try:
            queue()
        except BaseException:
            self._rt.cudaStreamEndCapture(stream)  # leaves capture mode; the first error is the one that counts
            raise
        graph = self._check(self._rt.cudaStreamEndCapture(stream), "graph capture")
        try:
            ready = self._check(self._rt.cudaGraphInstantiate(graph, 0), "graph instantiation")
        finally:
            self._rt.cudaGraphDestroy(graph)
        self._stack.callback(self._rt.cudaGraphExecDestroy, ready)
        return ready

    def launch(self, graph: Any, stream: Any) -> None:
        """Queue a captured graph."""
        self._check(self._rt.cudaGraphLaunch(graph, stream), "graph launch")

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device, other processes' use included."""
        free, total = self._check(self._rt.cudaMemGetInfo(), "reading the GPU's memory")
        return int(free), int(total)

    def drain(self) -> None:
        """Wait until the device does nothing more for us; errors are left to those who look at results."""
        self._rt.cudaDeviceSynchronize()

    def release(self) -> None:
        """Wait for the device and give everything back; doing it twice is harmless."""
        self.drain()
        self.released = True
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
