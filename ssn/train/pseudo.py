"""Pseudo-anomalies in the image: generic blobs of wrong signal, for the flow to push away from.

Noise on a feature, as published, points in directions that no lesion takes. These blobs go through the encoder
instead, so that what is pushed away are features that a change of the image can cause. They know nothing of
any disease: a random shape takes a random level, a random shift, or another place's signal (after foreign patch
interpolation; Tan et al., *Detecting Outliers with Foreign Patch Interpolation*, MELBA 2022).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ssn.core.slices import SliceStack
from ssn.train.anatomy import smooth_field

RADIUS_MM = (4.5, 24.0)  # 0.4 to 58 ml, drawn log-uniformly
LEAST_CHANGE = 0.12  # of the normalised intensity, mean over the blob
_MARGIN = 1.6  # half side of a blob's box, in radii: ragged edges stay inside
_ATTEMPTS = 4  # at a change that is large enough to be one


def _shape(radius: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Signed depth (k, k, k) in mm below the surface of a ragged, turned ellipsoid."""
    half = int(np.ceil(_MARGIN * radius))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    axes = np.moveaxis(np.indices((2 * half + 1,) * 3) - half, 0, -1) @ turn
    stretch = rng.uniform(0.75, 1.3, 3)
    distance = np.linalg.norm(axes / stretch, axis=-1)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    ragged = smooth_field(distance.shape, max(4.0, radius / 1.5), generator)[0].numpy()
    return (radius - distance - 0.15 * radius * ragged).astype(np.float32)


def _filling(slices: NDArray[np.float32], box: tuple[slice, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw what the blob shows instead of `slices[box]`; the volume's own grain stays on it."""
    own = slices[box]
    smooth = gaussian_filter(own, 1.0)
    kind = rng.choice(3)
    if kind == 0:
        wavy = gaussian_filter(rng.normal(size=own.shape).astype(np.float32), 3.0)
        level = rng.uniform(0.0, 1.0) + wavy / wavy.std() * rng.uniform(0.0, 0.08)
    elif kind == 1:
        level = smooth + rng.choice((-1, 1)) * rng.uniform(0.15, 0.5)
    else:  # signal from elsewhere in the volume, mirrored at random
        corner = [int(rng.integers(0, size - side + 1)) for size, side in zip(slices.shape, own.shape, strict=True)]
        patch = slices[tuple(slice(c, c + side) for c, side in zip(corner, own.shape, strict=True))]
        flip: slice = slice(None, None, int(rng.choice((-1, 1))))
        return patch[:, :, flip]
    return np.asarray(level + (own - smooth) * rng.uniform(0.5, 1.5), np.float32)


def insert_blobs(stack: SliceStack, seed: int, count: int) -> tuple[SliceStack, NDArray[np.bool_]]:
    """Insert blobs into a healthy stack.

    Parameters
    ----------
    stack : slices (D, H, W) normalised to 0..1
    count : of blobs to try; one that would overlap another, or changes too little, is left out

    Returns
    -------
    stack : with changed slices
    mask : (D, H, W) bool, where the blobs are
    """
    rng = np.random.default_rng(seed)
    slices = stack.slices.copy()
    mask = np.zeros(slices.shape, bool)
    reached = stack.placement.to_canonical(
        stack.brain[stack.box].astype(np.float32), stack.first, stack.first + len(stack.occupancy), box=stack.box
    )
    brain = (slices > 0) & (reached > 0)  # min-max leaves a background above 0 that is not the minimum
    places = np.argwhere(brain[:, ::2, ::2]) * (1, 2, 2)
    for _ in range(count):
        radius = float(np.exp(rng.uniform(*np.log(RADIUS_MM))))
        depth = _shape(radius, rng)
        half = depth.shape[0] // 2
        centre = places[rng.integers(len(places))]
        low = np.maximum(centre - half, 0)
        high = np.minimum(centre + half + 1, slices.shape)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        depth = depth[tuple(slice(a, b) for a, b in zip(low - centre + half, high - centre + half, strict=True))]
        inside = (depth > 0) & brain[box]
        if not inside.any() or (mask[box] & inside).any():
            continue
        weight = (depth / rng.uniform(1.0, 4.0) + 0.5).clip(0, 1) * rng.uniform(0.6, 1.0) * brain[box]
        for _attempt in range(_ATTEMPTS):
            changed = slices[box] + weight * (_filling(slices, box, rng).clip(0, 1) - slices[box])
            if np.abs(changed - slices[box])[inside].mean() >= LEAST_CHANGE:
                slices[box], mask[box] = changed, mask[box] | inside
                break
    return replace(stack, slices=slices), mask
