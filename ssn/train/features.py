"""Features of volumes, computed once and kept on disk, so that epochs don't run the encoder again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ssn.core.alignment import RIDGE, Moments, Whitening
from ssn.core.atomic import printable
from ssn.core.errors import DataError
from ssn.core.hashed_files import file_sha256
from ssn.core.slices import SliceStack, cut_slices
from ssn.core.volume import Volume, read_volume
from ssn.train.folding import folded
from ssn.train.network import FeatureNetwork
from ssn.train.pseudo import insert_blobs
from ssn.train.tensor_files import save_tensors

SLICES_AT_ONCE = 24
CPU_SLICES_AT_ONCE = 6  # so many slices' maps stay in a processor's cache; those of 24 do not
HALO_CELLS = 8.0  # an encoder sees about this far: healthy cells so near a blob are worth training on


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


@dataclass(frozen=True)
class AlteredFeatures:
    """Features of a healthy volume with pseudo-anomalies in it.

    Attributes
    ----------
    blob : of cells that are mostly pseudo-anomaly
    halo : of healthy cells near one, as many at most; the encoder sees the anomaly from there
    """

    blob: VolumeFeatures
    halo: VolumeFeatures


def stack_for(network: FeatureNetwork, volume: Volume, *, thick: bool = True) -> SliceStack:
    """Cut a volume into the network's slices; not `thick`, into those that its thick ones are made of.

    Raises
    ------
    DataError
        If the network takes for brain what is not 0, and the volume's background would not be.
    """
    config = network.config
    stack = cut_slices(volume, config.grid, network.cells, config.normalisation, config.thick if thick else None)
    if config.brain_only and config.normalisation == "minmax":
        background = volume.data[~stack.brain]
        if background.size and np.median(background) > volume.data.min():
            raise DataError(
                f"{printable(volume.path)}: its background is not its lowest value, so min-max does not make it 0, by "
                "which 'brain only' knows it; shift its grey values, or take normalisation robust"
            )
    return stack


@torch.inference_mode()
def compute_features(
    network: FeatureNetwork, stack: SliceStack, windows: NDArray[np.int64] | None = None
) -> VolumeFeatures:
    """Run the encoder over a stack, or over some of its windows (n,), and keep the occupied cells."""
    each = stack.slices_a_window
    device = network.feature_mean.device
    chosen = np.arange(len(stack.occupancy)) if windows is None else windows
    cells = stack.occupancy[0].size
    windows_at_once = (CPU_SLICES_AT_ONCE if device.type == "cpu" else SLICES_AT_ONCE) // each
    features, places = [], []
    for part in np.split(chosen, range(windows_at_once, len(chosen), windows_at_once)):
        batch = torch.from_numpy(stack.by_window[part].reshape(-1, 1, *stack.slices.shape[1:])).to(device)
        rows = network(batch).half().cpu().permute(0, 2, 3, 1).flatten(0, 2)
        occupied = np.flatnonzero(stack.occupancy[part] >= network.config.occupancy)
        features.append(rows[occupied])
        places.append((part + stack.first)[occupied // cells] * cells + occupied % cells)
    return VolumeFeatures(torch.cat(features), torch.from_numpy(np.concatenate(places)))


def compute_altered(network: FeatureNetwork, stack: SliceStack, seed: int, blobs: int) -> AlteredFeatures:
    """Insert pseudo-anomalies into a healthy stack, not thick, and run the encoder over the windows they touch."""
    window, cells = network.config.grid.window, network.cells
    altered, mask = insert_blobs(stack, seed, blobs)
    step = network.config.grid.plane // cells
    covered = mask.reshape(-1, window, cells, step, cells, step).mean((1, 3, 5))
    touched = np.flatnonzero(covered.any((1, 2)))
    # How far each cell is, within its own window, from a blob: windows don't see each other.
    far = np.full(covered.shape, np.inf)
    for index in touched:
        far[index] = distance_transform_edt(covered[index] == 0)
    found = compute_features(network, altered.thickened(network.config.thick), touched)
    places = found.places.numpy() - stack.first * cells**2
    coverage, distance = covered.ravel()[places], far.ravel()[places]
    blob = np.flatnonzero(coverage >= 0.5)
    halo = np.flatnonzero((coverage == 0) & (distance <= HALO_CELLS))
    halo = np.sort(np.random.default_rng(seed).permutation(halo)[: len(blob)])
    return AlteredFeatures(*(VolumeFeatures(found.features[i], found.places[i]) for i in (blob, halo)))


class FeatureReader:
    """Features of volumes by one frozen network; kept in `cache`, where one is given.

    A cache entry is named by the volume's contents and the network: a changed file or encoder is computed anew.
    """

    def __init__(self, network: FeatureNetwork, cache: Path | None) -> None:
        self._network = folded(network)
        self._fingerprint = network.fingerprint()
        self._cache = cache

    def _entry(self, cache: Path, path: Path, kind: str) -> Path:
        return cache / f"{file_sha256(path)[:16]}-{self._fingerprint[:16]}{kind}.safetensors"

    def has(self, path: Path) -> bool:
        """Whether a volume's features are in the cache."""
        return self._cache is not None and self._entry(self._cache, path, "").exists()

    def _kept(
        self, path: Path, kind: str, names: Sequence[str], compute: Callable[[], Sequence[Tensor]]
    ) -> Sequence[Tensor]:
        """Tensors of a cache entry, computed if it is not there or damaged."""
        if self._cache is None:
            return compute()
        entry = self._entry(self._cache, path, kind)
        try:
            stored = load_file(entry)
            return [stored[name] for name in names]
        except (FileNotFoundError, SafetensorError, KeyError):
            pass
        result = compute()
        self._cache.mkdir(parents=True, exist_ok=True)
        save_tensors(entry, dict(zip(names, result, strict=True)))
        return result

    def features(self, path: Path, stack: SliceStack | None = None, *, keep: bool = True) -> VolumeFeatures:
        """Features of a volume; `stack` is its slices, where they have been cut already.

        Do not `keep` those of a stack that is not the volume as it lies.
        """

        def compute() -> Sequence[Tensor]:
            found = compute_features(self._network, stack or stack_for(self._network, read_volume(path)))
            return found.features, found.places

        return VolumeFeatures(*(self._kept(path, "", ("features", "places"), compute) if keep else compute()))

    def altered(self, path: Path, seed: int, blobs: int) -> AlteredFeatures:
        """Features of a healthy volume with up to `blobs` pseudo-anomalies, drawn by `seed`."""

        def compute() -> Sequence[Tensor]:
            stack = stack_for(self._network, read_volume(path), thick=False)
            found = compute_altered(self._network, stack, seed, blobs)
            return found.blob.features, found.blob.places, found.halo.features, found.halo.places

        names = ("blob_features", "blob_places", "halo_features", "halo_places")
        blob, blob_places, halo, halo_places = self._kept(path, f"-altered{seed}x{blobs}", names, compute)
        return AlteredFeatures(VolumeFeatures(blob, blob_places), VolumeFeatures(halo, halo_places))


def align_volumes(volumes: list[VolumeFeatures], altered: list[AlteredFeatures]) -> None:
    """Bring each volume's features to the mean and covariance of all, in place; `altered` as their volume's (or none).

    A volume of healthy people has no lesion to be aligned away: all of its places have a say.
    """
    channels = volumes[0].features.shape[1]
    mean, matrix = (part.double().numpy() for part in measure_whitening(volumes, channels))
    everyone = Whitening(matrix.astype(np.float32), (-matrix @ mean).astype(np.float32))
    for index, own in enumerate(volumes):
        turn, offset = everyone.align(Moments.of(own.features.float().numpy(), everyone.mean))
        rows, shift = torch.from_numpy(turn.T).float(), torch.from_numpy(offset).float()

        def brought(found: VolumeFeatures, rows: Tensor = rows, shift: Tensor = shift) -> VolumeFeatures:
            return replace(found, features=(found.features.float() @ rows + shift).half())

        volumes[index] = brought(own)
        if altered:
            altered[index] = AlteredFeatures(brought(altered[index].blob), brought(altered[index].halo))


def measure_whitening(
    volumes: Sequence[VolumeFeatures], components: int, ridge: float = RIDGE
) -> tuple[Tensor, Tensor]:
    """Mean (C,) of all places' features, and the matrix (K, C) that whitens their K first principal components.

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
    return mean.float(), (directions * scale).T[-components:].float().contiguous()
