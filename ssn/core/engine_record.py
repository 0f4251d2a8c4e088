"""What is on record about TensorRT engines: the record's types, and how its file is read and checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE
from ssn.core.hashed_files import is_file_entry

ENGINE_SCHEMA = 1
ENGINES_FOLDER, RECORD_FILE = "engines", "record.json"
ENCODER_ENGINE, FLOW_ENGINE, TIMING_CACHE = "encoder.engine", "flow.engine", "timing.cache"
ANY_GPU = "any"
Precision = Literal["fp16", "fp32", "int8"]
_BUILDERS = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}  # module -> short name in the folder's name
_DTYPES = ("float16", "float32", "int64")
_CAPABILITY = re.compile(r"\d{2,3}\+?")
LARGEST_RECORD = 4 * 2**20


@dataclass(frozen=True)
class EngineKey:
    """What decides whether an engine may run.

    Attributes
    ----------
    builder : Python module that built it and must run it, "tensorrt" or "tensorrt_rtx"
    builder_version : its full version
    gpu : name as the driver gives it, for example "NVIDIA H200"; "any" if built ahead of time
    compute_capability : "90", "120"; "80+" if built ahead of time for 8.0 and later
    precision : of the weights and of most arithmetic
    max_windows : largest number of windows a call may have
    """

    builder: str
    builder_version: str
    gpu: str
    compute_capability: str
    precision: Precision
    max_windows: int

    @property
    def slug(self) -> str:
        """Name of the engine's folder."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-") or "gpu"
        builder = f"{_BUILDERS[self.builder]}{self.builder_version}"
        return f"{gpu}-sm{self.compute_capability}-{builder}-{self.precision}"


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of an engine; an axis of any length is -1."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class EngineRecord:
    """What is on record about a pair of engines.

    Attributes
    ----------
    onnx : SHA-256 of the bundle's graphs that they were built from
    files : size and SHA-256 of every file beside the record
    inputs, outputs : of each engine file
    build : provenance, for people: driver, seconds, nodes kept in FP32, measured drift
    """

    key: EngineKey
    onnx: Mapping[str, str]
    files: Mapping[str, Any]
    inputs: Mapping[str, tuple[TensorSpec, ...]]
    outputs: Mapping[str, tuple[TensorSpec, ...]]
    build: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineEntry:
    """A folder under engines/: its record, or the one line that says why it has none."""

    folder: Path
    record: EngineRecord | None
    problem: str | None = None


@dataclass(frozen=True)
class Device:
    """A CUDA device of this machine; `compute_capability` as in "90"."""

    name: str
    compute_capability: str
    driver: str
    memory_bytes: int


def parse_record(stored: Mapping[str, Any]) -> EngineRecord:
    """Read a record from its JSON.

    Raises
    ------
    KeyError, TypeError, ValueError
        If something is missing, was edited, or makes no sense.
    """
    if stored["sha256"] != record_digest(stored):
        raise ValueError("its hash differs")
    key = EngineKey(**stored["key"])
    if key.builder not in _BUILDERS or key.precision not in get_args(Precision) or key.max_windows < 1:
        raise ValueError("its key makes no sense")
    if not _CAPABILITY.fullmatch(key.compute_capability):
        raise ValueError(f"compute capability {key.compute_capability!r} makes no sense")
    files = stored["files"]
    if not {ENCODER_ENGINE, FLOW_ENGINE} <= set(files) <= {ENCODER_ENGINE, FLOW_ENGINE, TIMING_CACHE}:
        raise ValueError("its files are not an engine's")
    if not all(is_file_entry(entry) and entry["bytes"] > 0 for entry in files.values()):
        raise ValueError("a file has no size or hash")
    if not all(isinstance(stored["onnx"][name], str) for name in (ENCODER_FILE, FLOW_FILE)):
        raise ValueError("it does not say which graphs it was built from")
    inputs, outputs = (_parse_tensors(stored[which]) for which in ("inputs", "outputs"))
    return EngineRecord(key, stored["onnx"], files, inputs, outputs, stored["build"])


def _parse_tensors(stored: Mapping[str, Any]) -> dict[str, tuple[TensorSpec, ...]]:
    tensors = {
        name: tuple(TensorSpec(t["name"], t["dtype"], tuple(t["shape"])) for t in stored[name])
        for name in (ENCODER_ENGINE, FLOW_ENGINE)
    }
    for spec in (spec for specs in tensors.values() for spec in specs):
        if spec.dtype not in _DTYPES or not all(isinstance(size, int) for size in spec.shape):
            raise ValueError(f"tensor {spec.name!r} makes no sense")
    return tensors


def record_digest(stored: Mapping[str, Any]) -> str:
    """SHA-256 of a record's own contents, so that an edited one is told from the one that was written."""
    rest = {name: value for name, value in stored.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
