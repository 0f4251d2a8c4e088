"""Volumes with lesions that no cohort of the project holds: what a faster way finds in them stands beside its time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssn.core.metrics import voxel_auprc
from ssn.core.pose import find_brain
from ssn.core.volume import read_volume
from ssn.train.cases import Case

_SUBJECTS = 10  # two of each kind of lesion, and two without, which are not made
_SEED = 31


def make_lesioned(folder: Path, workers: int) -> list[Case]:
    """Write synthetic subjects with lesions to a folder, or find them there.

    Raises
    ------
    DataError
        If the package with their anatomy is not installed.
    """
    from ssn.train.datasets import open_split
    from ssn.train.synthetic import plan_cohort, write_cohort

    records = plan_cohort({"test": _SUBJECTS}, "t1", "icbm152", _SEED)
    write_cohort(folder, [record for record in records if record.lesion], workers=workers)
    return open_split(folder, "test")


def mean_auprc(cases: Sequence[Case], draw: Callable[[Path], NDArray[np.float32]]) -> float:
    """Mean over volumes of the AUPRC of brain voxels; `draw` gives the map (X, Y, Z) of a volume."""
    from ssn.train.masks import read_mask

    found = []
    for case in cases:
        assert case.mask is not None
        volume = read_volume(case.image)
        found.append(voxel_auprc(draw(case.image), read_mask(case.mask, volume.data.shape), find_brain(volume)))
    return float(np.mean(found))
