"""Healthy volumes of heads or scanners that a model like the one to be calibrated was trained without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssn.core.atomic import printable
from ssn.core.errors import DataError
from ssn.runtime.choose import DeviceName
from ssn.train.cases import Case
from ssn.train.datasets import open_split
from ssn.train.trained import TrainedMethod, calibration_of, open_trained, refuse_trained


@dataclass(frozen=True)
class Unseen:
    """Healthy volumes, and a calibrated model that has not seen their head or scanner."""

    method: TrainedMethod
    cases: Sequence[Case]


def open_unseen(
    given: Sequence[str], contrast: str | None, sigma: float, device: DeviceName, *, aligned: bool
) -> list[Unseen]:
    """Open each "MODEL=DATA": a checkpoint or a bundle, and the data set whose split `calibration` it is asked about.

    Parameters
    ----------
    sigma : mm, of the Gaussian over the map that the threshold is for
    aligned : the model that they are for aligns each volume by its own features, and so must these

    Raises
    ------
    DataError, BundleError
        If one is not of that form, not a calibrated model or no data set, if the model's map has another Gaussian, it
        was trained on the volumes, or one aligns volumes and the other does not.
    """
    found = []
    for text in given:
        model, _, data = text.partition("=")
        if not (model and data):
            raise DataError(f"--unseen {printable(text)}: expected MODEL=DATA")
        own = calibration_of(Path(model))
        if own.sigma != sigma:
            raise DataError(
                f"--unseen {printable(text)}: its map has a Gaussian of {own.sigma:g} mm, not {sigma:g}; "
                "calibrate both alike"
            )
        if own.aligned_to_itself != aligned:
            raise DataError(
                f"--unseen {printable(text)}: one of the two models aligns each volume, and the other does not; "
                "give one as ssn-train fit and calibrate left it, with --align or without as this one"
            )
        cases = open_split(Path(data), "calibration", contrast=contrast)
        refuse_trained(Path(model), cases)
        found.append(Unseen(open_trained(Path(model), device), cases))
    return found


def scored(given: Sequence[Unseen]) -> Iterator[tuple[NDArray[np.float32], float]]:
    """Yield of each volume the map's brain voxels (N,) and its score."""
    for each in given:
        for case in each.cases:
            found = each.method(case.image)
            yield found.score_map[found.brain], found.score
