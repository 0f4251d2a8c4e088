"""TensorRT engines of a bundle: where they lie, what is on record about them, and whether one may run here.

engines/<gpu>-sm<capability>-<builder><version>-<precision>/
    record.json       what was built, from what, for what; size and SHA-256 of the other files
    encoder.engine    slices [N,1,H,W] -> features [N/window,C,G,G]
    flow.engine       features, places [L], first [1] -> log_likelihood [L]
    timing.cache      where the builder keeps one

An engine is executable code for one GPU and one TensorRT version. Nothing of it is deserialised before its record
matches this machine and its bytes match the record; what doesn't match is refused with the command that rebuilds it.
The hashes tell damage and mix-ups, not malice: whoever may write into the bundle may write a new record too.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, Bundle
from ssn.core.errors import BundleError, OutputError
from ssn.core.hashed_files import file_entry, read_hashed

ENGINE_SCHEMA = 1
ENGINES_FOLDER, RECORD_FILE = "engines", "record.json"
ENCODER_ENGINE, FLOW_ENGINE, TIMING_CACHE = "encoder.engine", "flow.engine", "timing.cache"
ANY_GPU = "any"
Precision = Literal["fp16", "fp32", "int8"]
_BUILDERS = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}  # module -> short name in the folder's name
_DTYPES = ("float16", "float32", "int64")
_CAPABILITY = re.compile(r"\d{2,3}\+?")
_LARGEST_RECORD = 4 * 2**20


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


def rebuild_command(bundle: Path, precision: str = "fp16") -> str:
    """Command line that builds a bundle's engines for this machine, ready to be pasted."""
    return f"ssn-export build-engine {shlex.quote(str(bundle))} --precision {precision} --force"


def _remedy(bundle: Path, precision: str = "fp16") -> str:
    return f"Rebuild it with: {rebuild_command(bundle, precision)}"


def find_engines(bundle: Bundle) -> list[EngineEntry]:
    """List a bundle's engine folders by name. A damaged record is reported in its entry, never raised."""
    root = bundle.folder / ENGINES_FOLDER
    if root.is_symlink():
        return [EngineEntry(root, None, f"{root}: is a link, which is refused. {_remedy(bundle.folder)}")]
    if not root.is_dir():
        return []
    entries = []
    for folder in sorted(root.iterdir()):
        if folder.name.startswith(".") or not (folder.is_dir() or folder.is_symlink()):
            continue
        try:
            entries.append(EngineEntry(folder, _read_record(folder, bundle.folder)))
        except BundleError as error:
            entries.append(EngineEntry(folder, None, str(error)))
    return entries


def _read_record(folder: Path, bundle: Path) -> EngineRecord:
    path, remedy = folder / RECORD_FILE, _remedy(bundle)
    if folder.is_symlink() or path.is_symlink():
        raise BundleError(f"{folder}: an engine must lie in its bundle's own folder. {remedy}")
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_RECORD + 1)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}). {remedy}") from error
    try:
        stored = json.loads(data)
        if stored["schema"] == ENGINE_SCHEMA:
            record = _parse(stored)
            if folder.name != record.key.slug:
                raise ValueError(f"it is the record of {record.key.slug}")
            return record
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{path}: is damaged ({what}). {remedy}") from error
    raise BundleError(f"{path}: has another schema than {ENGINE_SCHEMA}, which this version of ssn reads. {remedy}")


def _parse(stored: Mapping[str, Any]) -> EngineRecord:
    if stored["sha256"] != _digest(stored):
        raise ValueError("its hash differs")
    key = EngineKey(**stored["key"])
    if key.builder not in _BUILDERS or key.precision not in get_args(Precision) or key.max_windows < 1:
        raise ValueError("its key makes no sense")
    if not _CAPABILITY.fullmatch(key.compute_capability):
        raise ValueError(f"compute capability {key.compute_capability!r} makes no sense")
    files = stored["files"]
    if not {ENCODER_ENGINE, FLOW_ENGINE} <= set(files) <= {ENCODER_ENGINE, FLOW_ENGINE, TIMING_CACHE}:
        raise ValueError("its files are not an engine's")
    if not all(isinstance(e["bytes"], int) and e["bytes"] > 0 and isinstance(e["sha256"], str) for e in files.values()):
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


def _digest(stored: Mapping[str, Any]) -> str:
    """SHA-256 of a record's own contents, so that an edited one is told from the one that was written."""
    rest = {name: value for name, value in stored.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def refusal(
    record: EngineRecord, bundle: Bundle, device: Device | None, builder: str, builder_version: str
) -> str | None:
    """Say why an engine may not run here, with the command that rebuilds it; None if it may.

    Parameters
    ----------
    device : of this machine; None where there is none
    builder, builder_version : the TensorRT module that is installed here
    """
    key = record.key
    name = bundle.folder / ENGINES_FOLDER / key.slug
    remedy = _remedy(bundle.folder, key.precision)
    if device is None:
        command = rebuild_command(bundle.folder, key.precision)
        return f"{name}: there is no NVIDIA GPU to run it on; on a machine that has one it is rebuilt with: {command}"
    for graph, sha256 in record.onnx.items():
        if bundle.manifest["files"].get(graph, {}).get("sha256") != sha256:
            return f"{name}: was built from another {graph} than this bundle's. {remedy}"
    if (key.builder, key.builder_version) != (builder, builder_version):
        return (
            f"{name}: was built by {key.builder} {key.builder_version} and this is {builder} {builder_version}. "
            f"{remedy}"
        )
    if key.gpu not in (ANY_GPU, device.name):
        return f"{name}: was built for {key.gpu} and this is {device.name}. {remedy}"
    wanted, here = key.compute_capability, device.compute_capability
    if not (int(here) >= int(wanted[:-1]) if wanted.endswith("+") else here == wanted):
        return f"{name}: was built for compute capability {wanted} and {device.name} has {here}. {remedy}"
    return None


def read_engine(entry: EngineEntry, name: str) -> bytes:
    """Read one of an engine's files; the bytes returned are the bytes that were hashed.

    Raises
    ------
    BundleError
        If there is no valid record, or the file isn't the one that was written.
    """
    if entry.record is None:
        raise BundleError(entry.problem or f"{entry.folder}: has no record")
    bundle = entry.folder.parent.parent
    return read_hashed(entry.folder, name, entry.record.files, _remedy(bundle, entry.record.key.precision))


def verify_engine(entry: EngineEntry) -> str | None:
    """Compare every file of an engine with its hash; returns what is wrong, None if nothing is."""
    try:
        for name in entry.record.files if entry.record else [RECORD_FILE]:
            read_engine(entry, name)
    except BundleError as error:
        return str(error)
    return None


def write_engines(bundle: Bundle, record: EngineRecord, blobs: Mapping[str, bytes], *, overwrite: bool = False) -> Path:
    """Write an engine's whole folder or none; returns it.

    Parameters
    ----------
    blobs : contents of the files; `record.files` must be their entries

    Raises
    ------
    OutputError
        If the folder exists and is not to be overwritten, or can't be written.
    ValueError
        If record and contents differ (a mistake of the caller, not of the user).
    """
    if {name: file_entry(data) for name, data in blobs.items()} != record.files:
        raise ValueError("the record is of other files")
    root = bundle.folder / ENGINES_FOLDER
    folder = root / record.key.slug
    if root.is_symlink() or folder.is_symlink():
        raise OutputError(f"{folder}: is a link, which is not followed; remove it")
    refuse_existing_engines(bundle, record.key, overwrite=overwrite)
    stored = {"schema": ENGINE_SCHEMA, **asdict(record)}
    stored["sha256"] = _digest(json.loads(json.dumps(stored)))
    try:
        root.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".tmp-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            for name, data in blobs.items():
                (made / name).write_bytes(data)
            (made / RECORD_FILE).write_text(json.dumps(stored, indent=1) + "\n")
            if folder.exists():
                folder.rename(Path(scratch) / "old")
            made.rename(folder)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror or error}); copy the bundle to a folder that you can "
            "write to and build there"
        ) from error
    return folder


def refuse_existing_engines(bundle: Bundle, key: EngineKey, *, overwrite: bool) -> None:
    """Raise OutputError if engines of this key exist and are not to be overwritten; before minutes of building."""
    folder = bundle.folder / ENGINES_FOLDER / key.slug
    if folder.exists() and not overwrite:
        raise OutputError(f"{folder}: exists already; use --force to replace it")
