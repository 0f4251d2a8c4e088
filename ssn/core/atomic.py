"""Output files that are either whole or not there: write under a temporary name, then rename."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ssn.core.errors import OutputError

# Characters of the final name that the temporary name ends in: enough for every suffix, so that a writer
# that picks its format by suffix (matplotlib, nibabel) picks the right one, and short enough for 255 bytes.
_KEPT_NAME = 40


def printable(path: Path | str) -> str:
    """Return a path as one line of text: names with line breaks or invalid bytes are escaped."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


@contextmanager
def atomic_path(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Lend a temporary path beside `path`; rename it to `path` on success, remove it on any failure.

    A reader never sees half a file, and a crash leaves the previous file as it was. There is no fsync:
    this protects from a failing process, not from a power cut.

    Parameters
    ----------
    path
        The file to make. Its folder must exist.
    overwrite
        Whether an existing file may be replaced.

    Yields
    ------
    Path
        A name in the same folder, with the same suffix, that does not exist yet. The caller creates it.

    Raises
    ------
    OutputError
        `path` exists and `overwrite` is false, is a folder or read-only, or any `OSError` inside the block.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    temporary = path.with_name(f".tmp-{secrets.token_hex(6)}-{path.name[-_KEPT_NAME:]}")
    try:
        yield temporary
        _take_name(temporary, path, overwrite=overwrite)
    except (OSError, UnicodeEncodeError) as error:
        # UnicodeEncodeError: a name that the file system's encoding cannot hold.
        raise OutputError(_cannot_write(path, error)) from error
    finally:
        # After the rename the temporary name is gone already; after a failure it must not stay behind.
        with suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)


def _take_name(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Give a file its name; without `overwrite` not that of a file which another process made meanwhile."""
    if overwrite:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)  # fails where a rename would replace
    except FileExistsError:
        raise OutputError(_exists(path)) from None
    except OSError:  # a file system without hard links
        check_target(path, overwrite=False)
        temporary.replace(path)


def _exists(path: Path) -> str:
    return f"{printable(path)}: exists already; use --force to replace it, or another name"


def write_text_atomic(path: Path | str, text: str, *, overwrite: bool = False) -> None:
    r"""Write UTF-8 text with `\n` line ends; all of it or nothing.

    Raises
    ------
    OutputError
        As for `atomic_path`.
    """
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError if `atomic_path` would, as far as that is known before anything is written."""
    if not path.name or "\0" in str(path):
        raise OutputError(f"{printable(path)}: not a file name; give the path of the file to write")
    # lexists: a dangling link counts as existing, and no permission problem raises here.
    if not os.path.lexists(path):
        return
    if path.is_dir():
        raise OutputError(f"{printable(path)}: is a folder; give the path of the file to write")
    if not overwrite:
        raise OutputError(_exists(path))
    # A rename would replace a read-only file without asking, because only the folder's permission counts.
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f"{printable(path)}: is read-only; make it writable or choose another name")


def _cannot_write(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
        return f"{printable(path)}: the folder {printable(path.parent)} does not exist; create it first"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{printable(path)}: cannot be written ({reason}); choose a folder that you can write to"
