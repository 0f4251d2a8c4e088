"""Healthy volumes that a bundle is to be calibrated on, read and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ssn.core.atomic import printable
from ssn.core.bundle import Bundle
from ssn.core.errors import DataError, SsnError, VolumeError
from ssn.core.look import Look, look_at
from ssn.core.volume import Volume, read_volume

FEWEST = 5  # healthy volumes: each is compared with four others at least
Refused = Callable[[SsnError], None]


def refuse_few(paths: Sequence[Path]) -> None:
    """Raise DataError if there are fewer than `FEWEST` volumes."""
    if len(paths) < FEWEST:
        raise DataError(f"{len(paths)} healthy volumes are too few to calibrate on; give at least {FEWEST}, better 20")


def read_healthy(paths: Sequence[Path], bundle: Bundle, refused: Refused) -> Iterator[tuple[Path, Volume, Look]]:
    """Yield each volume, and as the bundle looks at it, while the next is being read; three are in memory at most.

    `refused` gets the error of each volume that is not usable; the others are looked at too, so that one run names all
    that are bad.

    Raises
    ------
    DataError
        After the last, if any is not usable, there twice or one that the bundle was trained on.
    """
    seen: dict[str, Path] = {}
    bad = 0
    for path, volume in zip(paths, _read_ahead(paths), strict=True):
        try:
            if isinstance(volume, SsnError):
                raise volume
            voxels = volume.contents()
            if voxels in seen:
                raise VolumeError(f"{printable(path)}: is the same image as {printable(seen[voxels])}")
            seen[voxels] = path
            if volume.sha256 in bundle.trained_on:
                name = printable(bundle.spec.name)
                raise VolumeError(f"{printable(path)}: {name} was trained on it; leave it out")
            look = look_at(volume, bundle.spec.cut, bundle.calibration)
        except VolumeError as error:
            refused(error)
            bad += 1
            continue
        yield path, volume, look
    if bad:
        raise DataError(
            f"{bad} of {len(paths)} volumes are not usable, so nothing is calibrated; leave them out or mend them"
        )


def _read_ahead(paths: Sequence[Path]) -> Iterator[Volume | SsnError]:
    def read(path: Path) -> Volume | SsnError:
        try:
            return read_volume(path)
        except SsnError as error:
            return error

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, paths[0])
        for index in range(len(paths)):
            volume = coming.result()
            if index + 1 < len(paths):
                coming = reader.submit(read, paths[index + 1])
            yield volume
