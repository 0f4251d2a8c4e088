"""A calibration as bytes: an `.npz` of plain arrays, read without pickle."""

from __future__ import annotations

import io

import numpy as np

from ssn.core.scoring import Calibration

_NUMBERS = ("gain", "sigma", "threshold", "threshold_rate")


def pack_calibration(calibration: Calibration) -> bytes:
    """Serialise; the tables in half precision, whose error is a thousandth of the values' spread."""
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        mean=calibration.mean.astype(np.float16),
        deviation=calibration.deviation.astype(np.float16),
        healthy_scores=calibration.healthy_scores.astype(np.float32),
        numbers=np.array([getattr(calibration, name) for name in _NUMBERS]),
        voxel_mm=np.array([] if calibration.voxel_mm is None else [calibration.voxel_mm]),
        grey=np.zeros(0, np.float16) if calibration.grey is None else calibration.grey.astype(np.float16),
        aligned_to_itself=calibration.aligned_to_itself,
    )
    return stream.getvalue()


def unpack_calibration(data: bytes) -> Calibration:
    """Read what `pack_calibration` wrote.

    Raises
    ------
    ValueError
        If the bytes are something else, or hold values that no calibration has.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            numbers = dict(zip(_NUMBERS, stored["numbers"].tolist(), strict=True))
            calibration = Calibration(
                mean=stored["mean"].astype(np.float32),
                deviation=stored["deviation"].astype(np.float32),
                healthy_scores=stored["healthy_scores"].astype(np.float32),
                # An older calibration has none of these.
                voxel_mm=next(iter(stored["voxel_mm"].tolist() if "voxel_mm" in stored else ()), None),
                grey=stored["grey"].astype(np.float32) if "grey" in stored and stored["grey"].size else None,
                aligned_to_itself="aligned_to_itself" in stored and bool(stored["aligned_to_itself"]),
                **numbers,
            )
    except Exception as error:  # of damaged bytes zipfile, zlib and numpy raise whatever they like
        raise ValueError(f"not a calibration ({error})") from error
    tables = (calibration.mean, calibration.deviation)
    if tables[0].shape != tables[1].shape or tables[0].ndim != 3 or not calibration.healthy_scores.size:
        raise ValueError("not a calibration (its tables have the wrong shapes)")
    known = (*tables, calibration.healthy_scores, list(numbers.values()))
    if not all(np.isfinite(values).all() for values in known) or (calibration.deviation <= 0).any():
        raise ValueError("not a calibration (it has impossible values)")
    if calibration.voxel_mm is not None and not 0 < calibration.voxel_mm < np.inf:
        raise ValueError("not a calibration (its voxel size is impossible)")
    if calibration.grey is not None and (calibration.grey.ndim != 3 or np.isinf(calibration.grey).any()):
        raise ValueError("not a calibration (its grey values are impossible)")
    return calibration
