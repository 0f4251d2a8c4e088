"""What this machine has to compute with. Looking never raises: what is missing is None, with the reason in words."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ssn.core.engine_record import Device
from ssn.runtime.cuda import find_device

TENSORRT_MODULES = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class Machine:
    """What was found.

    Attributes
    ----------
    device : the GPU, or None
    no_device : why there is none
    modules : versions of the TensorRT modules and OpenVINO; None where one isn't there
    onnxruntime : its version, or None
    providers : ONNX Runtime's, best first
    """

    device: Device | None
    no_device: str
    modules: Mapping[str, str | None]
    onnxruntime: str | None
    providers: tuple[str, ...]


def look() -> Machine:
    """Look at this machine."""
    device, reason = find_device()
    modules = {name: _tensorrt_version(name, loaded=device is not None) for name in TENSORRT_MODULES}
    modules["openvino"] = _installed("openvino", "openvino")
    onnxruntime, providers = _onnxruntime()
    return Machine(device, reason, modules, onnxruntime, providers)


def _installed(module: str, package: str) -> str | None:
    """Version of an installed package, without importing it."""
    try:
        if importlib.util.find_spec(module) is None:
            return None
    except (ImportError, ValueError):
        return None
    return package_version(package) or "unknown"


def package_version(package: str) -> str | None:
    """Version of a package by its metadata; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _tensorrt_version(name: str, *, loaded: bool) -> str | None:
    """Version of a TensorRT module; `loaded` imports it, which is slow, and pointless without a GPU."""
    if not loaded:
        return _installed(name, name.replace("_", "-"))
    try:
        return str(importlib.import_module(name).__version__)
    except (ImportError, OSError, RuntimeError, AttributeError):
        return None


def _onnxruntime() -> tuple[str | None, tuple[str, ...]]:
    try:
        import onnxruntime

        return str(onnxruntime.__version__), tuple(onnxruntime.get_available_providers())
    except (ImportError, OSError, RuntimeError, AttributeError):
        return None, ()


def cpu_name() -> str:
    """Name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores that this process may use, without their second hardware threads: those share what multiplies."""
    if not hasattr(os, "sched_getaffinity"):
        return cores()
    try:
        siblings = [topology / f"cpu{cpu}/topology/thread_siblings_list" for cpu in os.sched_getaffinity(0)]
        return len({path.read_text() for path in siblings})
    except OSError:
        return cores()
