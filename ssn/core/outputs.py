"""Whether results can be written: asked before minutes of computing, not after them."""

import os
from contextlib import suppress
from pathlib import Path

from ssn.core.atomic import atomic_path, printable
from ssn.core.errors import OutputError


class _RehearsedError(Exception):
    """Ends a rehearsal before the file takes its name."""


def check_file(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError if `atomic_path` could not write a file; nothing is left behind."""
    with suppress(_RehearsedError), atomic_path(path, overwrite=overwrite) as temporary:
        temporary.touch()
        raise _RehearsedError


def check_folder(folder: Path) -> None:
    """Raise OutputError if files could not be written into a folder, which need not be there yet; none is made."""
    there = folder
    while not os.path.lexists(there):
        there = there.parent
    if there.is_symlink() and not there.exists():
        raise OutputError(
            f"{printable(folder)}: cannot be made ({printable(there)} is a link to nothing); choose another folder"
        )
    if not there.is_dir():
        raise OutputError(f"{printable(folder)}: cannot be made ({printable(there)} is a file); choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{printable(folder)}: cannot be written to; choose another folder")


def make_folder(folder: Path) -> None:
    """Make a folder for results, and those that it lies in; raise OutputError as `check_folder`."""
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{printable(folder)}: cannot be made ({error.strerror}); choose another folder") from error
