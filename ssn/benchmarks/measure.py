"""Measuring: warm-up, interleaved rounds, median and spread, and where it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ssn import __version__
from ssn.runtime.machine import cpu_name, look

_PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "timm",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
    "openvino",
)


@dataclass(frozen=True)
class Spread:
    """Times of repeated runs in milliseconds: the median, the middle half's ends, and the extremes."""

    median_ms: float
    low_ms: float
    high_ms: float
    best_ms: float
    worst_ms: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Summarise times in seconds."""
        low, median, high = (float(v) * 1000 for v in np.percentile(seconds, (25, 50, 75)))
        return cls(median, low, high, min(seconds) * 1000, max(seconds) * 1000, len(seconds))

    def as_json(self) -> dict[str, float | int]:
        """Plain values, rounded to a microsecond."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def interleaved(runs: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 3) -> dict[str, Spread]:
    """Time each run once a round, so that a machine that slows down slows all of them.

    Parameters
    ----------
    runs : name -> what to do; it must not return before its work is done
    warm_up : rounds that are not timed
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(warm_up + rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if index >= warm_up:
                times[name].append(time.perf_counter() - start)
    return {name: Spread.of(seconds) for name, seconds in times.items()}


def environment() -> dict[str, Any]:
    """Where and with what was measured: CPU, GPU, driver, versions, commit."""
    machine = look()
    return {
        "ssn": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": asdict(machine.device) if machine.device else None,
        "tensorrt_modules": {name: machine.modules[name] for name in ("tensorrt", "tensorrt_rtx")},
        "onnxruntime_providers": list(machine.providers),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the source tree, with "+" where it was changed since; None outside of one."""
    root = Path(__file__).parents[2]
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
