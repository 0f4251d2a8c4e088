"""The calibration that lies in a checkpoint's folder."""

from __future__ import annotations

from pathlib import Path

from ssn.core.atomic import atomic_path
from ssn.core.bundle import CALIBRATION_FILE
from ssn.core.calibration_file import pack_calibration, unpack_calibration
from ssn.core.errors import DataError
from ssn.core.scoring import Calibration


def save_calibration(folder: Path, calibration: Calibration) -> None:
    """Write a calibration into a checkpoint's folder."""
    with atomic_path(folder / CALIBRATION_FILE, overwrite=True) as temporary:
        temporary.write_bytes(pack_calibration(calibration))


def load_calibration(folder: Path) -> Calibration:
    """Read a checkpoint's calibration.

    Raises
    ------
    DataError
        If it has none, or a damaged one.
    """
    path = folder / CALIBRATION_FILE
    try:
        return unpack_calibration(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Make it with ssn-train calibrate.") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}. Make it again with ssn-train calibrate.") from error
