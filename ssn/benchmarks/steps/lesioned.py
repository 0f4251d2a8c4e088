"""Volumes with lesions that no cohort of the project holds: what a faster way finds in them stands beside its time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssn.core.metrics import voxel_auprc
from ssn.core.pose import find_brain
from ssn.core.volume import read_volume

SUBJECTS = 10  # two of each kind of lesion, and two without, which are not used
_SEED = 31


@dataclass(frozen=True)
class Lesioned:
    """A volume and its lesion's mask, both files."""

    image: Path
    mask: Path


def make_lesioned(folder: Path, workers: int) -> list[Lesioned]:
    """Write synthetic subjects with lesions to a folder, or find them there.

    Raises
    ------
    DataError
        If the package with their anatomy is not installed.
    """
    from ssn.train.synthetic import plan_cohort, write_cohort

    records = plan_cohort({"test": SUBJECTS}, "t1", "icbm152", _SEED)
    write_cohort(folder, records, workers=workers)
    return [Lesioned(folder / record.image, folder / record.mask) for record in records if record.mask]


def mean_auprc(volumes: Sequence[Lesioned], draw: Callable[[Path], NDArray[np.float32]]) -> float:
    """Mean over volumes of the AUPRC of brain voxels; `draw` gives the map (X, Y, Z) of a volume."""
    from ssn.train.masks import read_mask

    found = []
    for volume in volumes:
        image = read_volume(volume.image)
        found.append(voxel_auprc(draw(volume.image), read_mask(volume.mask, image.data.shape), find_brain(image)))
    return float(np.mean(found))
