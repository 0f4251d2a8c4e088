"""Output files that are either whole or not there: write under a temporary name, then rename."""

import errno
import json
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


Held = list[tuple[Path, Path]]  # files that are written, and the names that they are to have


@contextmanager
def atomic_path(path: Path | str, *, overwrite: bool = False, held: Held | None = None) -> Iterator[Path]:
    """Lend a temporary path beside `path`; rename it to `path` on success, remove it on any failure.

    A reader never sees half a file, and a crash leaves the previous file as it was. There is no fsync:
    this protects from a failing process, not from a power cut.

    Parameters
    ----------
    path
        The file to make. Its folder must exist.
    overwrite
        Whether an existing file may be replaced.
    held
        Of `atomic_together`, which renames the file with others; not at once then.

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
        if held is None:
            _take_name(temporary, path, overwrite=overwrite)
        else:
            held.append((temporary, path))
    except (OSError, UnicodeEncodeError) as error:
        # UnicodeEncodeError: a name that the file system's encoding cannot hold.
        raise OutputError(_cannot_write(path, error)) from error
    finally:
        # After the rename the temporary name is gone already; after a failure it must not stay behind.
        if held is None or (temporary, path) not in held:
            _remove(temporary)


@contextmanager
def atomic_together(*, overwrite: bool = False) -> Iterator[Held]:
    """Rename several files when all are written, in that order.

    If writing fails, all is as it was. If a name cannot be taken, none of them is there, but with `overwrite` those
    that have replaced another file stay.

    Yields
    ------
    list
        To be given to `atomic_path` as `held`.

    Raises
    ------
    OutputError
        If one cannot take its name.
    """
    held: Held = []
    taken = []
    try:
        yield held
        for temporary, path in held:
            try:
                _take_name(temporary, path, overwrite=overwrite)
            except OSError as error:
                raise OutputError(_cannot_write(path, error)) from error
            taken.append(path)
    except BaseException:
        for path in () if overwrite else taken:  # ours: not another process's that was faster
            _remove(path)
        raise
    finally:
        for temporary, _ in held:
            _remove(temporary)


def _remove(path: Path) -> None:
    with suppress(OSError, ValueError):
        path.unlink(missing_ok=True)


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


def write_text_atomic(path: Path | str, text: str, *, overwrite: bool = False, held: Held | None = None) -> None:
    r"""Write UTF-8 text with `\n` line ends; all of it or nothing; `held` as for `atomic_path`.

    Raises
    ------
    OutputError
        As for `atomic_path`.
    """
    with atomic_path(path, overwrite=overwrite, held=held) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json_atomic(path: Path | str, value: object, *, overwrite: bool = False, held: Held | None = None) -> None:
    """Write plain values as indented JSON; else as `write_text_atomic`, with its errors."""
    write_text_atomic(path, json.dumps(value, indent=1) + "\n", overwrite=overwrite, held=held)


def replace_folder(folder: Path, made: Path, old: Path) -> None:
    """Give a folder that is ready its name. One that has the name goes to `old`; if that fails, it stays.

    Raises
    ------
    OSError
        If a folder cannot be renamed.
    """
    if folder.exists():
        folder.rename(old)
    try:
        made.rename(folder)
    finally:
        if old.exists() and not folder.exists():  # whoever made the new one removes `old`, and none would be left
            old.rename(folder)


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
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{printable(path)}: cannot be written (the name is too long); rename the input to something shorter"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{printable(path)}: cannot be written ({reason}); choose a folder that you can write to"
