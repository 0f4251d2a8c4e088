"""Healthy synthetic subjects: one real template, deformed, sharpened and imaged anew for every seed.

An averaged template is far smoother than any person. Each subject therefore draws how sharp its tissue
borders are and how much fine cortical detail it has, besides its shape, contrast, bias field and noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter1d
from torch import Tensor

from ssn.train.templates import Template

Contrast = Literal["t1", "t2", "flair"]

# Mean signal of cerebrospinal fluid, grey and white matter, and the spread of each between subjects.
TISSUE_SIGNAL: dict[Contrast, tuple[tuple[float, float], ...]] = {
    "t1": ((0.16, 0.03), (0.56, 0.05), (0.84, 0.03)),
    "t2": ((0.95, 0.04), (0.58, 0.04), (0.38, 0.03)),
    "flair": ((0.12, 0.03), (0.62, 0.04), (0.47, 0.03)),
}
# (control point spacing in mm, displacement in mm) of the random velocity field, coarse to fine.
DEFORMATION_SCALES = ((60.0, 5.0), (30.0, 2.5), (12.0, 1.0))
# Fluid over the brain's surface, mm: skull strippers leave between none and several millimetres of it.
OUTER_FLUID = (-1.0, 3.5)


@dataclass(frozen=True)
class Tissue:
    """Tissue fractions of one subject on the output grid.

    Attributes
    ----------
    fractions : (3, X, Y, Z) float32 tensor
        Cerebrospinal fluid, grey, white; they sum to 1 inside `brain` and are 0 outside.
    texture : (X, Y, Z) float32 tensor
        The template's own signal that its tissue fractions don't explain (deep grey nuclei, for one).
    brain : (X, Y, Z) bool tensor
    """

    fractions: Tensor
    texture: Tensor
    brain: Tensor


def smooth_field(shape: tuple[int, ...], spacing: float, generator: torch.Generator, channels: int = 1) -> Tensor:
    """Draw a smooth random field of about unit variance.

    Parameters
    ----------
    shape : (X, Y, Z)
    spacing : float
        Distance of the control points in voxels; the field is linear between them.

    Returns
    -------
    (channels, X, Y, Z) float32 tensor
    """
    control = [max(2, round(n / spacing) + 1) for n in shape]
    noise = torch.randn(1, channels, *control, generator=generator)
    return F.interpolate(noise, size=shape, mode="trilinear", align_corners=True)[0]


def voxel_coordinates(shape: tuple[int, ...]) -> Tensor:
    """Each voxel's own indices, (3, X, Y, Z) float32."""
    return torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij"))


def sample(volume: Tensor, coordinates: Tensor) -> Tensor:
    """Trilinear samples of `volume` (C, X, Y, Z) at voxel `coordinates` (3, x, y, z); zero outside."""
    size = torch.tensor(volume.shape[1:], dtype=torch.float32).view(3, 1, 1, 1)
    normalised = (coordinates / (size - 1) * 2 - 1).flip(0).permute(1, 2, 3, 0)
    return F.grid_sample(volume[None], normalised[None], mode="bilinear", align_corners=True)[0]


def _integrate(velocity: Tensor, steps: int = 5) -> Tensor:
    """Displacement of the flow along a stationary velocity (scaling and squaring), both (3, x, y, z) in voxels.

    Being the end point of a flow, the deformation is smooth and invertible: tissue never folds.
    """
    displacement = velocity / 2**steps
    identity = voxel_coordinates(tuple(velocity.shape[1:]))
    for _ in range(steps):
        displacement = displacement + sample(displacement, identity + displacement)
    return displacement


def draw_coordinates(
    shape: tuple[int, int, int], rng: np.random.Generator, seed: int, turn: NDArray[np.float64] | None = None
) -> Tensor:
    """Draw where each voxel of a new subject lies in the template: (3, X, Y, Z) in template voxels.

    `turn`: a rotation (3, 3) of the head in the grid, besides the one that is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    half = tuple(-(-n // 2) for n in shape)
    velocity = torch.zeros(3, *half)
    strength = rng.uniform(0.6, 1.4)
    for spacing, amplitude in DEFORMATION_SCALES:
        # Coordinates of the half-resolution grid: millimetres and amplitudes halve.
        velocity += smooth_field(half, spacing / 2, generator, 3) * (amplitude * strength / 2)
    displacement = F.interpolate(_integrate(velocity)[None] * 2, size=shape, mode="trilinear", align_corners=True)[0]

    angles = np.deg2rad(rng.normal(0, (5.0, 3.0, 3.0)).clip(-10, 10))
    cos, sin = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cos[0], -sin[0]], [0, sin[0], cos[0]]])
    about_y = np.array([[cos[1], 0, sin[1]], [0, 1, 0], [-sin[1], 0, cos[1]]])
    about_z = np.array([[cos[2], -sin[2], 0], [sin[2], cos[2], 0], [0, 0, 1]])
    # The template is a large head: people are smaller on average.
    scale = rng.normal(0.95, 0.03) * rng.normal(1.0, 0.02, 3)
    own = (about_x @ about_y @ about_z) / scale
    matrix = torch.from_numpy(own if turn is None else own @ turn).float()
    centre = (torch.tensor(shape, dtype=torch.float32) - 1) / 2
    shift = torch.from_numpy(rng.normal(0, 2.0, 3)).float()
    moved = voxel_coordinates(shape) + displacement - centre.view(3, 1, 1, 1)
    return torch.einsum("ij,jxyz->ixyz", matrix, moved) + (centre + shift).view(3, 1, 1, 1)


def draw_tissue(
    template: Template, coordinates: Tensor, rng: np.random.Generator, seed: int, brain: Tensor | None = None
) -> Tissue:
    """Sample the template at `coordinates`; draw the subject's fluid, sharpness and cortical detail.

    `brain` keeps a given outline; None draws one.
    """
    generator = torch.Generator().manual_seed(seed)
    fluid = (template.brain - template.grey - template.white).clip(0)
    signal = sum(m * p for (m, _), p in zip(TISSUE_SIGNAL["t1"], (fluid, template.grey, template.white), strict=True))
    residual = (template.t1 - signal * np.median(template.t1[template.white > 0.9]) / 0.84) * template.brain
    # Over the brain there is fluid; how far each voxel lies outside (or, negative, inside) decides where it ends.
    fluid[~template.brain] = 1
    outside = distance_transform_edt(~template.brain) - distance_transform_edt(template.brain)
    channels = np.stack([fluid, template.grey, template.white, residual, outside])
    sampled = sample(torch.from_numpy(channels.astype(np.float32)), coordinates)
    shape = tuple(sampled.shape[1:])

    edge = (
        rng.uniform(*OUTER_FLUID)
        + smooth_field(shape, 45.0, generator)[0]
        + 0.4 * smooth_field(shape, 10.0, generator)[0]
    )
    # Beyond the template's own volume, where `sample` gives 0 everywhere, there is no tissue either.
    brain = (sampled[4] < edge) & (sampled[:3].sum(0) > 0.5) if brain is None else brain

    # Sharpening a soft mixture p is a power p^s, renormalised; detail is noise on its logarithm, and so is the
    # width of sulci and ventricles, which differs between people and between places.
    sharpness = rng.uniform(1.0, 3.5)
    detail = rng.uniform(0.1, 0.7) * sharpness
    logits = torch.log(sampled[:3].clamp_min(0.02)) * sharpness
    logits[0] += sharpness * (rng.normal(0.2, 0.5) + 0.4 * smooth_field(shape, 45.0, generator)[0])
    logits[:2] += detail * smooth_field(shape, 3.0, generator, 2)
    logits += 0.5 * detail * smooth_field(shape, 7.0, generator, 3)
    fractions = torch.softmax(logits, 0) * brain
    return Tissue(fractions, sampled[3] * brain, brain)


def tissue_signal(tissue: Tissue, contrast: Contrast, rng: np.random.Generator) -> Tensor:
    """Noise-free signal (X, Y, Z) of a contrast, white matter of T1 at about 0.84."""
    levels = [rng.normal(mean, spread) for mean, spread in TISSUE_SIGNAL[contrast]]
    signal = sum(level * fraction for level, fraction in zip(levels, tissue.fractions, strict=True))
    share = rng.uniform(0.4, 1.0) * {"t1": 1.0, "t2": -0.6, "flair": -0.3}[contrast]
    return ((signal + share * tissue.texture).clamp_min(0.02)) * tissue.brain


def acquire(signal: Tensor, brain: Tensor, rng: np.random.Generator, seed: int) -> NDArray[np.float32]:
    """Image a noise-free signal (X, Y, Z): point spread, bias field, texture and Rician noise; 0 outside brain."""
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(signal.shape)
    blur, bias, grain, noise = rng.uniform((0.25, 0.02, 0.0, 0.008), (0.75, 0.10, 0.03, 0.035))
    image = signal.numpy()
    for axis in range(3):
        image = gaussian_filter1d(image, blur, axis=axis, mode="nearest", truncate=3)
    field = bias * smooth_field(shape, 90.0, generator)[0] + grain * smooth_field(shape, 5.0, generator)[0]
    clean = torch.from_numpy(image) * torch.exp(field)
    real, imaginary = (noise * torch.randn(shape, generator=generator) for _ in range(2))
    magnitude = torch.sqrt((clean + real) ** 2 + imaginary**2)
    return np.asarray((magnitude * brain).numpy(), np.float32)
