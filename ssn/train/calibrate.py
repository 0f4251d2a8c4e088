"""Calibration of a detector, and the file that it lies in in a checkpoint's folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ssn.core.atomic import atomic_path
from ssn.core.bundle import CALIBRATION_FILE
from ssn.core.calibrate import calibrate
from ssn.core.calibration_file import pack_calibration, unpack_calibration
from ssn.core.errors import DataError
from ssn.core.scoring import Calibration
from ssn.core.volume import read_volume
from ssn.train.checkpoint import Detector
from ssn.train.evaluate import healthy_volume
from ssn.train.features import FeatureReader
from ssn.train.likelihood import aligned_by_own, detector_log_likelihood


def calibrate_detector(
    detector: Detector, paths: Iterable[Path], reader: FeatureReader, *, sigma: float, rate: float
) -> Calibration:
    """Calibrate on healthy volumes (`ssn.core.calibrate`); those of an aligned detector are aligned each by its own.

    Which of their places look healthy, and have a say in that, a first calibration tells, of volumes as they are.

    Parameters
    ----------
    reader : of the detector's network
    """
    run = partial(calibrate, windows=detector.config.grid.windows, cells=detector.network.cells, sigma=sigma, rate=rate)
    known = [(path, healthy_volume(detector, read_volume(path), reader)) for path in paths]
    calibration = run(healthy for _, healthy in known)
    if not detector.config.aligned:
        return calibration
    whitening = detector.network.own_whitening()
    assert whitening is not None  # `ModelConfig` sees to that
    again = []
    for path, healthy in known:
        found = aligned_by_own(detector, reader.features(path), whitening, calibration)
        again.append(replace(healthy, log_likelihood=detector_log_likelihood(detector, found)[1]))
    return replace(run(again), aligned_to_itself=True)


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
