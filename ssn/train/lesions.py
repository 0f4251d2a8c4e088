"""Synthetic lesions with exact masks: tumour, white-matter hyperintensities, stroke, atrophy.

Signals are relative to the tissue signals of `anatomy.TISSUE_SIGNAL`. No training of the detector sees
any of these: they exist to measure it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ssn.core.errors import DataError
from ssn.train.anatomy import Contrast, Tissue, smooth_field, voxel_coordinates

LesionKind = Literal["tumour", "wmh", "stroke", "atrophy"]
LESION_KINDS: tuple[LesionKind, ...] = get_args(LesionKind)
# Smallest and largest volume of each kind, in ml; drawn log-uniformly.
VOLUME_RANGE_ML: dict[LesionKind, tuple[float, float]] = {
    "tumour": (2.0, 60.0),
    "wmh": (0.5, 15.0),
    "stroke": (1.0, 60.0),
    "atrophy": (1.0, 40.0),
}
_SIGNAL: dict[str, dict[Contrast, tuple[float, float]]] = {
    "core": {"t1": (0.22, 0.36), "t2": (0.75, 0.95), "flair": (0.25, 0.55)},
    "rim": {"t1": (0.55, 1.10), "t2": (0.50, 0.65), "flair": (0.60, 0.75)},
    "oedema": {"t1": (0.42, 0.58), "t2": (0.72, 0.88), "flair": (0.82, 0.98)},
    "wmh": {"t1": (0.42, 0.60), "t2": (0.70, 0.85), "flair": (0.80, 0.95)},
    "stroke": {"t1": (0.20, 0.42), "t2": (0.75, 0.95), "flair": (0.75, 0.95)},
    "atrophy": {"t1": (0.14, 0.18), "t2": (0.92, 0.98), "flair": (0.10, 0.14)},
}


@dataclass(frozen=True)
class Part:
    """One homogeneous part: `weight` (X, Y, Z) in 0..1 blends `name`'s signal over the tissue's."""

    name: str
    weight: Tensor


@dataclass(frozen=True)
class Lesion:
    """A lesion in a subject's grid.

    Attributes
    ----------
    parts : blended in order
    mask : (X, Y, Z) bool tensor, exact
    push : (3, X, Y, Z) tensor or None
        Mass effect: how far, in voxels, each voxel's tissue has been displaced outwards.
    """

    kind: LesionKind
    parts: tuple[Part, ...]
    mask: Tensor
    push: Tensor | None

    @property
    def volume_ml(self) -> float:
        """Volume on the 1 mm grid."""
        return float(self.mask.sum()) / 1000


def _soft(inside: Tensor, width: float = 1.0) -> Tensor:
    """Step from 0 to 1 across `width` voxels, 0.5 where `inside` (a signed distance) is 0."""
    return (inside / width + 0.5).clamp(0, 1)


def _distance(centre: tuple[int, ...], shape: tuple[int, ...], stretch: np.ndarray) -> Tensor:
    axes = [(torch.arange(float(n)) - c) / float(s) for n, c, s in zip(shape, centre, stretch, strict=True)]
    x, y, z = (a.square().view([-1 if i == j else 1 for j in range(3)]) for i, a in enumerate(axes))
    return torch.sqrt(x + y + z)


def _threshold_for(score: Tensor, allowed: Tensor, voxels: float) -> float:
    """Level of `score` above which `allowed` has the wanted number of voxels."""
    values = score[allowed]
    wanted = min(int(voxels), values.numel() - 1)
    return float(values.kthvalue(values.numel() - wanted).values)


def _pick(candidates: Tensor, rng: np.random.Generator) -> tuple[int, ...]:
    places = candidates.nonzero()
    if len(places) == 0:
        raise DataError("no place in this brain suits the lesion; give a T1-weighted scan of a whole brain")
    return tuple(places[rng.integers(len(places))].tolist())


def _depth(tissue: Tissue) -> Tensor:
    """Depth below the brain's surface (X, Y, Z), in voxels."""
    return torch.from_numpy(ndimage.distance_transform_edt(tissue.brain.numpy()).astype(np.float32))


def _offsets(centre: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """From a voxel to each voxel, (3, X, Y, Z)."""
    return voxel_coordinates(shape) - torch.tensor(centre).view(3, 1, 1, 1)


def _tumour(tissue: Tissue, ml: float, rng: np.random.Generator, generator: torch.Generator) -> Lesion:
    shape = tuple(tissue.brain.shape)
    centre = _pick((tissue.fractions[1] + tissue.fractions[2] > 0.8) & (_depth(tissue) >= 8), rng)
    distance = _distance(centre, shape, rng.uniform(0.8, 1.25, 3))
    radius = (3 * ml * 1000 / (4 * np.pi)) ** (1 / 3)
    ragged = distance + radius * 0.18 * smooth_field(shape, max(6.0, radius / 1.5), generator)[0]
    solid = tissue.brain & (tissue.fractions[0] < 0.7)
    outer = -_threshold_for(-ragged, solid, ml * 1000)
    share = rng.uniform(0.45, 0.8)  # of the radius: tumour proper; the rest is oedema
    rim = rng.uniform(2.0, 4.0)
    whole = _soft(outer - ragged, 2.5) * solid
    proper = _soft(outer * share - ragged) * solid
    core = _soft(outer * share - rim - ragged) * solid
    away = _offsets(centre, shape) / distance.clamp_min(1.0)
    reach = rng.uniform(0.1, 0.3) * radius
    push = away * (reach * torch.exp(-((distance - outer * share).clamp_min(0) / (1.2 * radius))))
    parts = (Part("oedema", 0.85 * whole), Part("rim", proper), Part("core", core))
    return Lesion("tumour", parts, whole > 0.5, push)


def _wmh(tissue: Tissue, ml: float, rng: np.random.Generator, generator: torch.Generator) -> Lesion:
    shape = tuple(tissue.brain.shape)
    white = (tissue.fractions[2] > 0.75) & (_depth(tissue) >= 10)
    # A few clusters; each spot is a ragged ball, all spots together have the wanted volume.
    score = torch.full(shape, -torch.inf)
    for _ in range(int(rng.integers(1, 6))):
        size = rng.uniform(0.6, 1.4)
        score = torch.maximum(score, -_distance(_pick(white, rng), shape, rng.uniform(0.7, 1.6, 3)) / size)
    score = score + 0.8 * smooth_field(shape, 4.0, generator)[0]
    level = _threshold_for(score, white, ml * 1000)
    weight = _soft(score - level, 1.5) * white
    return Lesion("wmh", (Part("wmh", 0.9 * weight),), weight > 0.5, None)


def _stroke(tissue: Tissue, ml: float, rng: np.random.Generator, generator: torch.Generator) -> Lesion:
    shape = tuple(tissue.brain.shape)
    solid = tissue.brain & (tissue.fractions[0] < 0.8)
    depth = _depth(tissue)
    apex = _pick(tissue.brain & (depth > 18) & (depth < 40), rng)
    # A wedge opens from its apex towards the nearest cortex, as a vessel's territory does.
    gradient = np.array(_gradient_at(depth, apex))
    outward = -gradient / max(float(np.linalg.norm(gradient)), 1e-6)
    offsets = _offsets(apex, shape)
    length = torch.linalg.vector_norm(offsets, dim=0).clamp_min(1.0)
    along = sum(a * float(o) for a, o in zip(offsets, outward, strict=True)) / length
    ragged = along + 0.06 * smooth_field(shape, 8.0, generator)[0]
    ragged = torch.where(length < 70, ragged, -1.0)
    beyond = solid & (depth < depth[apex])
    level = _threshold_for(ragged, beyond, ml * 1000)
    weight = _soft((ragged - level) * length) * beyond
    return Lesion("stroke", (Part("stroke", rng.uniform(0.6, 1.0) * weight),), weight > 0.5, None)


def _gradient_at(field: Tensor, place: tuple[int, ...], step: int = 4) -> list[float]:
    """Central differences of a volume at a voxel; at the border, to the voxel itself."""
    result = []
    for axis in range(3):
        low, high = list(place), list(place)
        low[axis] = max(place[axis] - step, 0)
        high[axis] = min(place[axis] + step, field.shape[axis] - 1)
        result.append(float(field[tuple(high)]) - float(field[tuple(low)]))
    return result


def _atrophy(tissue: Tissue, ml: float, rng: np.random.Generator, generator: torch.Generator) -> Lesion:
    shape = tuple(tissue.brain.shape)
    depth = _depth(tissue)
    solid = tissue.brain & (tissue.fractions[0] < 0.6)
    centre = _pick(solid & (depth > 4) & (depth < 14), rng)
    score = -_distance(centre, shape, rng.uniform(0.7, 1.5, 3)) + 3.0 * smooth_field(shape, 6.0, generator)[0]
    weight = _soft(score - _threshold_for(score, solid, ml * 1000), 2.0) * solid
    return Lesion("atrophy", (Part("atrophy", 0.95 * weight),), weight > 0.5, None)


_MAKERS: dict[LesionKind, Callable[[Tissue, float, np.random.Generator, torch.Generator], Lesion]] = {
    "tumour": _tumour,
    "wmh": _wmh,
    "stroke": _stroke,
    "atrophy": _atrophy,
}


def draw_lesion(kind: LesionKind, tissue: Tissue, rng: np.random.Generator, seed: int) -> Lesion:
    """Draw a lesion of a kind inside a subject; its volume is log-uniform over `VOLUME_RANGE_ML`.

    Raises
    ------
    DataError
        If no place in the brain is as deep, or of such tissue, as the kind needs.
    """
    low, high = VOLUME_RANGE_ML[kind]
    ml = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    return _MAKERS[kind](tissue, ml, rng, torch.Generator().manual_seed(seed))


def blend(signal: Tensor, lesion: Lesion, contrast: Contrast, rng: np.random.Generator) -> Tensor:
    """Noise-free signal (X, Y, Z) with the lesion's parts blended over it."""
    for part in lesion.parts:
        level = rng.uniform(*_SIGNAL[part.name][contrast])
        signal = signal * (1 - part.weight) + level * part.weight
    return signal
