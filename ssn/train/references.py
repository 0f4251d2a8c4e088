"""Simple references that a detector must beat: voxel-wise z-score, PCA residual, and the intensity itself.

All work on the volumes in the canonical grid at `SPACING` mm, learn from the same healthy volumes (the intensity
learns nothing), smooth with the same Gaussian, and come back to the input's grid through the same geometry as the
detector's map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ssn.core.geometry import GridConfig
from ssn.core.scoring import smooth_map
from ssn.core.slices import SliceStack, cut_slices
from ssn.core.volume import read_volume
from ssn.train.evaluate import Method, ScoredVolume

ReferenceName = Literal["z-score", "pca"]
Blocks = NDArray[np.float32]  # (windows, cells, cells)
SPACING = 3  # mm; it divides the grid
PCA_COMPONENTS = 64
_GRID = GridConfig()
_CELLS = _GRID.plane // SPACING


def _blocks(stack: SliceStack) -> NDArray[np.float32]:
    """Mean intensity of blocks of SPACING mm over the whole grid, (windows, cells, cells); 0 outside the brain."""
    windows = len(stack.occupancy)
    shape = (windows, _GRID.window, _CELLS, SPACING, _CELLS, SPACING)
    result = np.zeros((_GRID.windows, _CELLS, _CELLS), np.float32)
    result[stack.first : stack.first + windows] = stack.slices.reshape(shape).mean((1, 3, 5))
    return result


def healthy_blocks(paths: Sequence[Path], progress: Callable[[], None] = lambda: None) -> NDArray[np.float32]:
    """Read healthy volumes' blocks (n, windows, cells, cells); `progress` is called once a volume."""
    blocks = []
    for path in paths:
        blocks.append(_blocks(cut_slices(read_volume(path), _GRID, _CELLS)))
        progress()
    return np.stack(blocks)


def residual_method(residual: Callable[[Blocks], Blocks], sigma: float) -> Method:
    """Make a method of a function from a volume's blocks to their scores.

    Parameters
    ----------
    sigma : mm, of the Gaussian over the scores
    """

    def method(path: Path) -> ScoredVolume:
        volume = read_volume(path)
        stack = cut_slices(volume, _GRID, _CELLS)
        places = stack.occupied_places(0.5)
        score_map = smooth_map(residual(_blocks(stack)).ravel()[places], places, stack, sigma)
        return ScoredVolume.of(score_map, stack.brain, volume)

    return method


def intensity_method(*, bright: bool, sigma: float) -> Method:
    """Call bright, or dark, voxels anomalous: the intensity itself, 0..1 between the brain's own percentiles."""

    def method(path: Path) -> ScoredVolume:
        volume = read_volume(path)
        stack = cut_slices(volume, _GRID, _CELLS)
        places = stack.occupied_places(0.5)
        # Of the part that is brain: at the rim a block's mean has background in it, which is no dark tissue.
        inside = stack.occupancy.ravel()[places - stack.first * _CELLS**2]
        intensity = _blocks(stack).ravel()[places] / inside
        values = intensity if bright else 1 - intensity
        return ScoredVolume.of(smooth_map(values, places, stack, sigma), stack.brain, volume)

    return method


def reference_method(name: ReferenceName, blocks: NDArray[np.float32], sigma: float) -> Method:
    """Make a reference a method.

    z-score: |x - mean| / standard deviation at each place over the healthy volumes. pca: |x - its projection| on
    the mean and the first components of the healthy volumes (scikit-learn's PCA, randomised solver).

    Parameters
    ----------
    blocks : of the healthy volumes, (n, windows, cells, cells)
    sigma : mm, of the Gaussian over the residual
    """
    mean = blocks.mean(0)
    if name == "z-score":
        # A floor, because where few brains reach the spread is 0 and any brain would be infinitely odd.
        deviation = np.maximum(blocks.std(0), 0.05)

        def residual(x: Blocks) -> Blocks:
            return np.abs(x - mean) / deviation

    else:
        from sklearn.decomposition import PCA

        inside = mean > 0.01
        components = min(PCA_COMPONENTS, len(blocks) - 1)
        model = PCA(components, svd_solver="randomized", random_state=0).fit(blocks[:, inside])

        def residual(x: Blocks) -> Blocks:
            result = np.zeros_like(x)
            row = x[inside][None]
            result[inside] = np.abs(row - model.inverse_transform(model.transform(row)))[0]
            return result

    return residual_method(residual, sigma)
