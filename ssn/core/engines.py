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

import json
import os
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ssn.core.atomic import replace_folder
from ssn.core.bundle import Bundle
from ssn.core.engine_record import (
    ANY_GPU,
    ENGINE_SCHEMA,
    ENGINES_FOLDER,
    LARGEST_RECORD,
    RECORD_FILE,
    Device,
    EngineEntry,
    EngineKey,
    EngineRecord,
    parse_record,
    record_digest,
)
from ssn.core.errors import BundleError, OutputError
from ssn.core.hashed_files import file_entry, read_hashed

_ELSEWHERE = "copy the bundle to a folder that you can write to and build there"


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
            data = stream.read(LARGEST_RECORD + 1)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}). {remedy}") from error
    try:
        stored = json.loads(data)
        if stored["schema"] == ENGINE_SCHEMA:
            record = parse_record(stored)
            if folder.name != record.key.slug:
                raise ValueError(f"it is the record of {record.key.slug}")
            return record
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{path}: is damaged ({what}). {remedy}") from error
    raise BundleError(f"{path}: has another schema than {ENGINE_SCHEMA}, which this version of ssn reads. {remedy}")


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
    refuse_existing_engines(bundle, record.key, overwrite=overwrite)
    root = bundle.folder / ENGINES_FOLDER
    folder = root / record.key.slug
    stored = {"schema": ENGINE_SCHEMA, **asdict(record)}
    stored["sha256"] = record_digest(json.loads(json.dumps(stored)))
    try:
        root.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".tmp-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            for name, data in blobs.items():
                (made / name).write_bytes(data)
            (made / RECORD_FILE).write_text(json.dumps(stored, indent=1) + "\n")
            replace_folder(folder, made, Path(scratch) / "old")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error}); {_ELSEWHERE}") from error
    return folder


def refuse_existing_engines(bundle: Bundle, key: EngineKey, *, overwrite: bool) -> None:
    """Raise OutputError if engines of this key can't be written, or exist already; before minutes of building."""
    root = bundle.folder / ENGINES_FOLDER
    folder = root / key.slug
    if root.is_symlink() or folder.is_symlink():
        raise OutputError(f"{folder}: is a link, which is not followed; remove it")
    place = root if root.exists() else bundle.folder
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: cannot be written; {_ELSEWHERE}")
    if folder.exists() and not overwrite:
        raise OutputError(f"{folder}: exists already; use --force to replace it")
