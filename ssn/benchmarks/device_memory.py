"""Peak GPU memory of this process, sampled through NVML where there is a GPU."""

from __future__ import annotations

import os
import threading
from typing import Any, Self

from ssn.runtime.memory import MEGABYTE

_SAMPLED_EVERY = 0.002  # s


class PeakDeviceMemory:
    """Samples while its `with` block runs.

    Attributes
    ----------
    peak : bytes that this process had on all GPUs at once
    problem : why nothing was sampled, or None
    """

    def __init__(self) -> None:
        self.peak = 0
        self.problem: str | None = None
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def as_json(self) -> dict[str, float | str]:
        """Peak in MB, or the reason why there is none."""
        if self.problem is None and self.peak == 0:
            self.problem = "NVML names no memory of this process"
        if self.problem is not None:
            return {"no_device_memory": self.problem}
        return {"device_peak_mb": round(self.peak / MEGABYTE, 1)}

    def __enter__(self) -> Self:
        try:
            import pynvml

            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        except ImportError:
            self.problem = "nvidia-ml-py is not installed"
            return self
        except Exception as error:  # NVML's own error, whose class exists only where pynvml does
            self.problem = f"NVML: {error}"
            return self
        self._thread = threading.Thread(target=self._sample, args=(pynvml, handles), daemon=True)
        self._thread.start()
        return self

    def _sample(self, nvml: Any, handles: list[Any]) -> None:
        own = os.getpid()
        while not self._done.wait(_SAMPLED_EVERY):
            try:
                used = sum(
                    process.usedGpuMemory or 0
                    for handle in handles
                    for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                    if process.pid == own
                )
            except nvml.NVMLError as error:
                self.problem = f"NVML: {error}"
                return
            self.peak = max(self.peak, used)

    def __exit__(self, *error: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
