"""Features of volumes, computed once and kept on disk, so that epochs don't run the encoder again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssn.core.atomic import atomic_path
from ssn.core.slices import SliceStack, cut_slices
from ssn.core.volume import read_volume
from ssn.train.network import FeatureNetwork

SLICES_AT_ONCE = 24


@dataclass(frozen=True)
class VolumeFeatures:
    """Features of the cells with brain in them.

    Attributes
    ----------
    features : (L, C) float16
        Before whitening. Half precision: its error, 5e-4 relative, is far below the features' spread.
    places : (L,) int64
        Canonical window * G * G + row * G + column.
    """

    features: Tensor
    places: Tensor


def stack_for(network: FeatureNetwork, path: Path) -> SliceStack:
    """Read a volume and cut it into the network's slices."""
    config = network.config
    return cut_slices(read_volume(path), config.grid, network.cells, config.normalisation)


def occupied_places(stack: SliceStack, occupancy: float) -> NDArray[np.int64]:
    """Places (L,) of the stack's map cells with brain in them, window counted in the canonical grid."""
    cells = stack.occupancy.shape[1] ** 2
    return np.flatnonzero(stack.occupancy >= occupancy) + stack.first * cells


@torch.inference_mode()
def compute_features(network: FeatureNetwork, stack: SliceStack) -> VolumeFeatures:
    """Run the encoder over a stack and keep the occupied cells."""
    window = network.config.grid.window
    step = SLICES_AT_ONCE // window * window
    device = network.feature_mean.device
    maps = []
    for start in range(0, len(stack.slices), step):
        batch = torch.from_numpy(stack.slices[start : start + step])[:, None].to(device)
        maps.append(network.raw(batch).half().cpu())
    places = torch.from_numpy(occupied_places(stack, network.config.occupancy))
    channels_last = torch.cat(maps).permute(0, 2, 3, 1).flatten(0, 2)
    offset = stack.first * stack.occupancy.shape[1] ** 2
    return VolumeFeatures(channels_last[places - offset].contiguous(), places)


def cached_features(network: FeatureNetwork, path: Path, cache: Path, fingerprint: str) -> VolumeFeatures:
    """Features of a volume, from `cache` if they are there.

    The key is the file's contents and the network's fingerprint: a changed file or encoder is computed anew.
    """
    contents = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = cache / f"{contents[:16]}-{fingerprint[:16]}.safetensors"
    try:
        stored = load_file(entry)
        return VolumeFeatures(stored["features"], stored["places"])
    except (FileNotFoundError, SafetensorError, KeyError):
        pass
    result = compute_features(network, stack_for(network, path))
    cache.mkdir(parents=True, exist_ok=True)
    with atomic_path(entry, overwrite=True) as temporary:
        save_file({"features": result.features, "places": result.places}, temporary)
    return result


def load_features(
    network: FeatureNetwork,
    paths: Sequence[Path],
    cache: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> list[VolumeFeatures]:
    """Features of several volumes; `progress` is called with the number done."""
    fingerprint = network.fingerprint()
    result = []
    for index, path in enumerate(paths):
        result.append(cached_features(network, path, cache, fingerprint))
        progress(index + 1)
    return result


def measure_whitening(volumes: Sequence[VolumeFeatures], ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Mean (C,) and whitening matrix (C, C) of all places' features.

    The matrix is diag(variance + ridge)^-1/2 U^T of the covariance's eigenvectors U; `ridge`, a share of the
    mean variance, keeps directions that hardly vary from being blown up.
    """
    count = sum(len(v.features) for v in volumes)
    mean = torch.stack([v.features.double().sum(0) for v in volumes]).sum(0) / count
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for volume in volumes:
        centred = volume.features.float() - mean.float()
        covariance += (centred.T @ centred).double()
    variance, directions = torch.linalg.eigh(covariance / count)
    scale = (variance.clamp_min(0) + ridge * variance.mean()).rsqrt()
    return mean.float(), (directions * scale).T.float().contiguous()
