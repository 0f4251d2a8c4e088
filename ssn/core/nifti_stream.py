"""The bytes of a NIfTI file, read once from start to end, with everything verified that can be.

nibabel stops reading where the last voxel ends, so it never sees gzip's checksum, and it decompresses
without a limit. Here the file is read to its very end: the gzip checksum and length are checked, nothing
may follow the declared voxels, and no more is decompressed than the header declares.
"""

import gzip
import hashlib
import io
import os
import stat
import zlib
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from ssn.core.atomic import printable
from ssn.core.errors import VolumeError

# Some writers pad a file to whole blocks; zeros up to this many bytes after the last voxel are harmless.
_PADDING_BYTES = 512
# Deflate cannot shrink data more than 1032 times, so that a small file cannot hold a big volume.
_MAX_DEFLATE_RATIO = 1032
_SKIP_BYTES = 1 << 20

# isal's type stub declares its error class as an instance.
_ISAL_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]
_DAMAGED = (EOFError, zlib.error, _ISAL_ERROR, gzip.BadGzipFile)


def refusal(path: Path, what: str, remedy: str) -> VolumeError:
    """Make the one-line error of a volume that is not usable: file, what is wrong, what to do."""
    return VolumeError(f"{printable(path)}: {what}; {remedy}")


class _HashingFile(io.RawIOBase):
    """A file whose SHA-256 is computed from the same read that feeds the decompressor."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self.sha256.update(memoryview(buffer)[:count])
        return int(count)


class NiftiStream:
    """The decompressed bytes of a `.nii` or `.nii.gz` file, in order, as a context manager.

    Whether the file is compressed is read from its content, not from its name.

    Raises
    ------
    VolumeError
        From the constructor, if the file cannot be opened; from every read, if it is damaged or too short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw = _open_regular_file(path)
        try:
            self.file_bytes = os.fstat(self._raw.fileno()).st_size
            self.compressed = self._raw.read(2) == b"\x1f\x8b"
            self._raw.seek(0)
        except OSError as error:
            self._raw.close()
            raise _unreadable(path, error) from error
        self._hashing = _HashingFile(self._raw)
        self._stream: io.BufferedIOBase = (
            igzip.GzipFile(fileobj=self._hashing, mode="rb") if self.compressed else io.BufferedReader(self._hashing)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        self._raw.close()

    def read(self, count: int) -> bytes:
        """Return up to `count` bytes; fewer only at the end of the file."""
        buffer = np.empty(count, np.uint8)
        return buffer[: self._fill(buffer)].tobytes()

    def read_voxels(self, out: NDArray[np.generic]) -> None:
        """Fill a contiguous array with the next bytes of the file; `VolumeError` if they are not there."""
        if self._fill(out.view(np.uint8)) < out.nbytes:
            raise self._too_short()

    def skip(self, count: int) -> None:
        """Read `count` bytes (header extensions) and forget them."""
        while count > 0:
            step = min(count, _SKIP_BYTES)
            if len(self.read(step)) < step:
                raise self._too_short()
            count -= step

    def check_size(self, declared_bytes: int) -> None:
        """Raise `VolumeError`, before memory is taken, if the file cannot hold `declared_bytes`."""
        possible = self.file_bytes * (_MAX_DEFLATE_RATIO if self.compressed else 1)
        if possible < declared_bytes:
            raise self._too_short()

    def finish(self) -> str:
        """Read to the very end, so that gzip's checksum is verified, and return the file's SHA-256.

        Raises
        ------
        VolumeError
            The checksum or length is wrong, or more than zero padding follows the declared voxels.
        """
        rest = self.read(_PADDING_BYTES + 1)
        if len(rest) > _PADDING_BYTES or any(rest):
            raise refusal(
                self.path, "holds more data than its header declares", "write it again from the original scan"
            )
        return self._hashing.sha256.hexdigest()

    def _fill(self, buffer: NDArray[np.uint8]) -> int:
        """Read until the buffer is full or the file ends; return the number of bytes read."""
        filled = 0
        try:
            while filled < buffer.nbytes:
                count = self._stream.readinto(buffer[filled:].data)
                if not count:
                    break
                filled += count
        except _DAMAGED as error:
            reason = str(error).rstrip(".")
            raise refusal(self.path, f"damaged gzip file ({reason})", "copy or download the file again") from error
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return filled

    def _too_short(self) -> VolumeError:
        return refusal(
            self.path,
            "cut short: it holds fewer voxels than its header declares",
            "copy or download the file again",
        )


def _open_regular_file(path: Path) -> BinaryIO:
    try:
        status = path.stat()
        # Pipes and devices could block or never end.
        if stat.S_ISREG(status.st_mode) and status.st_size > 0:
            return path.open("rb", buffering=0)  # type: ignore[return-value]
    except FileNotFoundError as error:
        if path.is_symlink():
            raise refusal(path, "is a link to a file that is not there", "fetch the file it points to") from error
        raise refusal(path, "does not exist", "check the path") from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise refusal(path, "is a folder", "give a NIfTI file (a DICOM series: convert with dcm2niix first)")
    if not stat.S_ISREG(status.st_mode):
        raise refusal(path, "is not a regular file", "give a .nii or .nii.gz file")
    raise refusal(path, "is empty (0 bytes)", "copy or download the file again")


def _unreadable(path: Path, error: Exception) -> VolumeError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return refusal(path, f"cannot be read ({reason})", "check the path and its permissions")
