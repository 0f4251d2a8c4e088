"""One synthetic subject: a brain drawn from a template, with or without a lesion, and imaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ssn.train.anatomy import (
    Contrast,
    acquire,
    draw_coordinates,
    draw_tissue,
    sample,
    tissue_signal,
    voxel_coordinates,
)
from ssn.train.lesions import LesionKind, blend, draw_lesion
from ssn.train.templates import Template

CROPPED_SHARE = 0.15


@dataclass(frozen=True)
class Subject:
    """A subject's image (X, Y, Z) float32 in 0..about 1 with 0 outside the brain, lesion mask and affine."""

    image: NDArray[np.float32]
    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]


def make_subject(
    template: Template,
    seed: int,
    *,
    contrast: Contrast = "t1",
    lesion: LesionKind | None = None,
    tilt_degrees: int = 0,
) -> Subject:
    """Make one subject. The same seed with another `lesion` (or none) is the same brain and acquisition."""
    streams = np.random.SeedSequence(seed).spawn(6)
    shape_rng, tissue_rng, signal_rng, lesion_rng, scan_rng, tilt_rng = (np.random.default_rng(s) for s in streams)
    states = [int(s.generate_state(1)[0]) for s in streams]
    turn = draw_turn(tilt_rng, tilt_degrees) if tilt_degrees else None
    coordinates = draw_coordinates(template.t1.shape, shape_rng, states[0], turn)
    tissue_state = tissue_rng.bit_generator.state
    tissue = draw_tissue(template, coordinates, tissue_rng, states[1])
    drawn = None
    if lesion is not None:
        drawn = draw_lesion(lesion, tissue, lesion_rng, states[3])
        if drawn.push is not None:
            # Tissue now at x was at x - push(x): look its template coordinates up there. The same random
            # numbers give the same subject; the skull, and so the brain's outline, stays.
            tissue_rng.bit_generator.state = tissue_state
            moved = sample(coordinates, voxel_coordinates(template.t1.shape) - drawn.push)
            tissue = draw_tissue(template, moved, tissue_rng, states[1], tissue.brain)
    signal = tissue_signal(tissue, contrast, signal_rng)
    if drawn is not None:
        signal = blend(signal, drawn, contrast, lesion_rng)
    image = acquire(signal, tissue.brain, scan_rng, states[4])
    mask = np.zeros(image.shape, bool) if drawn is None else drawn.mask.numpy()
    affine = template.affine.copy()
    if scan_rng.random() < CROPPED_SHARE:  # the field of view ends inside the brain
        lowest = int(np.flatnonzero(image.any((0, 1)))[0] + scan_rng.integers(5, 25))
        if mask.any():  # but not inside the lesion
            lowest = min(lowest, int(np.flatnonzero(mask.any((0, 1)))[0]))
        image, mask = image[:, :, lowest:], mask[:, :, lowest:]
        affine[:3, 3] += affine[:3, 2] * lowest
    return Subject(image, mask, affine)


def draw_turn(rng: np.random.Generator, degrees: int) -> NDArray[np.float64]:
    """Draw a rotation (3, 3) by an angle."""
    axis = rng.normal(size=3)
    return Rotation.from_rotvec(axis / np.linalg.norm(axis) * degrees, degrees=True).as_matrix()


def thicken(subject: Subject, count: int) -> Subject:
    """Make one axial slice of every `count`, as a scan with thick slices has them.

    A voxel's intensity is the mean of what is brain in it. It is brain, or lesion, where half of it or more is; of a
    lesion too small for that the voxels that hold most of it stay.
    """
    top = -subject.image.shape[2] % count  # voxels short of a whole slice: background

    def cut(data: NDArray[Any]) -> NDArray[Any]:
        padded = np.pad(data, ((0, 0), (0, 0), (0, top)))
        return padded.reshape(*data.shape[:2], -1, count)

    brain = cut(subject.image != 0)
    mean = cut(subject.image).sum(-1) / brain.sum(-1).clip(1)
    image = np.where(brain.mean(-1) >= 0.5, mean, 0).astype(np.float32)
    share = cut(subject.mask).mean(-1) * (image != 0)
    mask = (share >= min(0.5, share.max())) & (share > 0)
    affine = subject.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (count - 1) / 2  # the middle of the first slice
    affine[:3, 2] *= count
    return Subject(image, mask, affine)
