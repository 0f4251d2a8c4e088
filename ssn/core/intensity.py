"""Intensity normalisation of a volume to 0..1."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ssn.core.tails import outer_percentiles

Normalisation = Literal["robust", "minmax"]
_PERCENTILES = (0.5, 99.5)


def intensity_range(
    data: NDArray[np.float32], brain: NDArray[np.bool_], mode: Normalisation = "robust"
) -> tuple[float, float]:
    """Values that become 0 and 1 (METHOD.md, Input).

    `robust` takes the 0.5 and 99.5 percentiles inside the brain; `minmax` the extremes of the whole volume,
    as the published method does.
    """
    if mode == "minmax":
        return float(data.min()), float(data.max())
    return outer_percentiles(data[brain], *_PERCENTILES)


def normalise(
    data: NDArray[np.float32], brain: NDArray[np.bool_], mode: Normalisation = "robust"
) -> NDArray[np.float32]:
    """Scale (X, Y, Z) to 0..1, clipped; with `robust`, background becomes 0."""
    low, high = intensity_range(data, brain, mode)
    scaled = data - np.float32(low)
    scaled /= np.float32(max(high - low, 1e-12))
    scaled.clip(0, 1, out=scaled)
    if mode == "robust":
        scaled *= brain
    return scaled
