"""Whose a file is that lies where an output is to be written: what ssn did not write is never replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib

from ssn.core.atomic import printable
from ssn.core.errors import OutputError
from ssn.core.volume import OWN_MARK

PAGE_MARK = '<meta name="generator" content="ssn">'
PICTURE_MARK = ("Software", "ssn")  # a PNG's text
TABLE_COLUMNS = ("file", "score", "p_value", "abnormal", "above_threshold_ml", "highest_z", "seconds", "error")


def refuse_existing(paths: list[Path]) -> None:
    """Raise OutputError if any of the outputs exists."""
    for path in paths:
        if os.path.lexists(path):  # a dangling link too
            raise OutputError(
                f"{printable(path)}: exists already; use --force to replace it, --resume to keep what is finished, or "
                "another output folder"
            )


def refuse_foreign(paths: list[Path]) -> None:
    """Raise OutputError if any of the outputs exists and is not ours: a scan's own record, or a mask drawn by hand."""
    for path in paths:
        if path.exists() and not _own(path):
            raise OutputError(
                f"{printable(path)}: was not written by ssn, so it is not replaced; choose another output folder"
            )


def remove_own(path: Path) -> None:
    """Remove an older output, if it is there and ours: what is beside it now is of another run."""
    if path.exists() and _own(path):
        path.unlink(missing_ok=True)  # another thread may be doing the same


def _own(path: Path) -> bool:
    from PIL import Image  # only where something is to be replaced: it costs a start 30 ms

    name, value = PICTURE_MARK
    try:
        match path.suffix:
            case ".json":
                return "intended_use" in json.loads(path.read_text(encoding="utf-8"))
            case ".gz":
                return bytes(nib.load(path).header["descrip"].item()).startswith(OWN_MARK)
            case ".html":
                return PAGE_MARK in path.read_text(encoding="utf-8")
            case ".csv":
                with path.open(encoding="utf-8") as stream:
                    return stream.readline().strip() == ",".join(TABLE_COLUMNS)
            case _:
                with Image.open(path) as picture:
                    return picture.info.get(name) == value
    except Exception:  # of damaged bytes zlib, Pillow and json raise whatever they like, and ours are none
        return False
