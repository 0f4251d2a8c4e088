"""Files whose size and SHA-256 are on record: what is returned is what was hashed, or an error."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ssn.core.errors import BundleError


def file_entry(data: bytes) -> dict[str, Any]:
    """Size and SHA-256 of a file's bytes, as they are kept in a record."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's contents, read anew where size or time of change differ; OSError where it cannot be read."""
    seen = path.stat()
    return _sha256(path.absolute(), seen.st_size, seen.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_file_entry(entry: object) -> bool:
    """Whether a value that was read somewhere is what `file_entry` gives."""
    if not isinstance(entry, dict):
        return False
    size, digest = entry.get("bytes"), entry.get("sha256")
    return type(size) is int and size >= 0 and isinstance(digest, str)


def read_hashed(folder: Path, name: str, entries: Mapping[str, Any], remedy: str) -> bytes:
    """Read a file of `folder` and compare the very bytes that are returned with its entry.

    Parameters
    ----------
    entries : name -> what `file_entry` gave when the file was written
    remedy : what the user is to do if it isn't that file any more; ends every message

    Raises
    ------
    BundleError
        If the file has no entry, lies elsewhere, cannot be read, or was modified.
    """
    path = folder / name
    if name not in entries:
        raise BundleError(f"{path}: has no hash on record. {remedy}")
    if name != Path(name).name or name in (".", "..") or path.is_symlink():
        raise BundleError(f"{path}: a bundle's files must lie in its own folder. {remedy}")
    size = entries[name]["bytes"]
    try:
        with path.open("rb") as stream:
            # No more than is expected, however long the file was made, and nothing if it cannot be that.
            data = stream.read(size + 1) if os.fstat(stream.fileno()).st_size == size else b""
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}). {remedy}") from error
    if len(data) != size or hashlib.sha256(data).hexdigest() != entries[name]["sha256"]:
        raise BundleError(f"{path}: was modified since it was written (its hash differs). {remedy}")
    return data
