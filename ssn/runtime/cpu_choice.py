"""ONNX Runtime or OpenVINO: which computes a bundle faster on this CPU, measured once and remembered."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ssn.core.atomic import write_json_atomic
from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, Bundle
from ssn.core.errors import SsnError
from ssn.runtime.backend import DEFAULT_BATCH, Backend, Batch, StageTimes
from ssn.runtime.machine import Machine, cores, cpu_name

# OpenVINO takes longer to import and to compile, and more memory: it must win that back on few volumes.
WORTH = 1.1
_SECONDS = 0.5  # of timed rounds; heavy models have fewer
_ROUNDS = (2, 8)  # at least, at most


@dataclass(frozen=True)
class Comparison:
    """What was measured.

    Attributes
    ----------
    speedup : seconds that ONNX Runtime takes for a batch over those of OpenVINO
    """

    speedup: float

    @property
    def chosen(self) -> Literal["onnxruntime", "openvino"]:
        """The one to take."""
        return "openvino" if self.speedup >= WORTH else "onnxruntime"

    def line(self) -> str:
        """Text for people."""
        said = f"openvino: {self.speedup:.2f} times as fast as onnxruntime here, measured"
        return said if self.chosen == "openvino" else f"{said}; below {WORTH:g} its start-up does not pay"


def compare_on_cpu(bundle: Bundle, machine: Machine, threads: int | None) -> Comparison | None:
    """Compare both on this CPU, once for each bundle, version and number of threads; later calls remember.

    It never raises. None: it could not be measured, for example because OpenVINO does not load.
    """
    path = cache_path()
    key = choice_key(bundle, machine, threads)
    known = _read(path)
    speedup = known.get(key)
    if speedup is not None:
        return Comparison(speedup)
    try:
        speedup = round(measure_speedup(bundle, threads), 3)  # as it is remembered: both are to choose alike
    except Exception:  # a package that is broken may raise anything, and the other one still computes
        return None
    _write(path, {**known, key: speedup})
    return Comparison(speedup)


def cache_path() -> Path | None:
    """Path of the file that remembers, in the user's cache folder, where there is one."""
    own = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    # A relative path is no valid setting (XDG Base Directory Specification).
    try:
        folder = Path(own) if Path(own).is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as in a container
        return None
    return folder / "ssn" / "cpu-backend.json"


def choice_key(bundle: Bundle, machine: Machine, threads: int | None) -> str:
    """Everything that the answer depends on, as text."""
    graphs = (bundle.manifest["files"][name]["sha256"][:16] for name in (ENCODER_FILE, FLOW_FILE))
    parts = (
        cpu_name(),
        f"{cores()} cores",
        f"{threads or 'all'} threads",
        f"onnxruntime {machine.onnxruntime}",
        f"openvino {machine.modules['openvino']}",
        *graphs,
    )
    return ", ".join(parts)


def measure_speedup(bundle: Bundle, threads: int | None) -> float:
    """Best time of a batch with ONNX Runtime over that with OpenVINO, in interleaved rounds."""
    from ssn.runtime.onnxruntime import OnnxRuntimeBackend
    from ssn.runtime.openvino import OpenVinoBackend

    batch = _batch(bundle)
    with OnnxRuntimeBackend(bundle, threads) as one, OpenVinoBackend(bundle, threads) as other:
        backends: tuple[Backend, Backend] = (one, other)
        for backend in backends:
            _seconds(backend, batch)
        best = [math.inf, math.inf]
        start = time.perf_counter()
        least, most = _ROUNDS
        for done in range(most):
            if done >= least and time.perf_counter() - start > _SECONDS:
                break
            best = [min(known, _seconds(backend, batch)) for known, backend in zip(best, backends, strict=True)]
    return best[0] / best[1]


def _batch(bundle: Bundle) -> Batch:
    """Slices with a smooth pattern as the encoder takes them, half of the map's cells with brain in them."""
    spec = bundle.spec
    grid, cells = spec.grid, spec.cells**2
    windows = max(1, DEFAULT_BATCH // grid.window)
    ramp = np.linspace(0, 6, grid.plane, dtype=np.float32)
    plane = (0.5 + 0.4 * np.sin(ramp) * np.cos(ramp[:, None])).astype(np.float32)
    slices = np.repeat(plane[None, None], windows * spec.slices_a_window, axis=0)
    first = (grid.windows - windows) // 2
    return Batch(slices, np.arange(first * cells, (first + windows) * cells, 2), first)


def _seconds(backend: Backend, batch: Batch) -> float:
    start = time.perf_counter()
    for _ in backend.run([batch], StageTimes()):
        pass
    return time.perf_counter() - start


def _read(path: Path | None) -> dict[str, float]:
    """Read what is remembered; nothing if the file is missing or damaged."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        key: value for key, value in found.items() if isinstance(value, float) and math.isfinite(value) and value > 0
    }


def _write(path: Path | None, known: dict[str, float]) -> None:
    """Remember, if there is a folder that can be written to."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, known, overwrite=True)
    except (OSError, SsnError):
        return
