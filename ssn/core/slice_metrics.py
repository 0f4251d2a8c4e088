"""Accuracy metrics over slices (METHOD.md, "Scoring"): those over voxels, of each slice's highest score."""

import numpy as np
from numpy.typing import NDArray

from ssn.core.metrics import Array, check_shapes, voxel_auprc, voxel_auroc


def slice_scores(score_map: Array, within: NDArray[np.bool_]) -> Array:
    """Score of each axial slice (Z,): the highest of a map (X, Y, Z) in `within`, -inf where it has no voxel there."""
    return score_map.max((0, 1), where=within, initial=-np.inf)


def slice_auroc(scores: Array, labels: Array) -> float:
    """Area under the ROC curve over slices.

    Parameters
    ----------
    scores : (S,), as from `slice_scores`. Slices scored -inf have no brain and are left out.
    labels : (S,), true where the slice has lesion.

    Raises
    ------
    ValueError
        If no slice, or every slice, is labelled; if a labelled slice has no score; if a score is NaN or +inf.
    """
    return voxel_auroc(scores, labels, _slices_with_brain(scores, labels))


def slice_auprc(scores: Array, labels: Array) -> float:
    """Average precision over slices; parameters and errors as in `slice_auroc`."""
    return voxel_auprc(scores, labels, _slices_with_brain(scores, labels))


def _slices_with_brain(scores: Array, labels: Array) -> NDArray[np.bool_]:
    with_brain: NDArray[np.bool_] = np.asarray(scores) != -np.inf
    check_shapes(scores=with_brain, labels=np.asarray(labels))
    if np.any(np.asarray(labels).astype(bool) & ~with_brain):
        raise ValueError("a slice labelled as lesion has no voxel within the brain: label the mask within the brain")
    return with_brain
