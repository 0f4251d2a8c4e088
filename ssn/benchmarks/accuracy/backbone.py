"""What peers look with: the slices that the measured detector sees, and its encoder's network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssn.core.bundle import load_bundle
from ssn.core.errors import BundleError
from ssn.core.geometry import GridConfig
from ssn.core.intensity import Normalisation
from ssn.core.slices import SliceStack, cut_slices
from ssn.core.volume import Volume, read_volume
from ssn.train.checkpoint import load_checkpoint
from ssn.train.distributed import choose_device
from ssn.train.encoder import COMPACT, EncoderConfig, EncoderWeights, SliceEncoder, build_encoder
from ssn.train.folding import folded
from ssn.train.trained import is_bundle


@dataclass(frozen=True)
class Backbone:
    """A frozen network and the slices that it sees.

    Attributes
    ----------
    name : of timm's network
    weights : as `build_encoder` takes them
    seed : of random weights; those of a detector that started from random ones with this seed are the same
    """

    name: str = COMPACT.name
    weights: EncoderWeights = "imagenet"
    grid: GridConfig = field(default_factory=GridConfig)
    normalisation: Normalisation = "robust"
    seed: int = 0

    @classmethod
    def of(cls, model: Path, weights: EncoderWeights) -> Backbone:
        """Take the slices and the network's name of a checkpoint or a bundle.

        Raises
        ------
        DataError, BundleError
            If it is neither, or damaged.
        """
        if is_bundle(model):
            bundle = load_bundle(model)
            if bundle.encoder_name is None:
                raise BundleError(f"{model}: does not name its encoder; give the checkpoint that it was made from")
            return cls(bundle.encoder_name, weights, bundle.spec.grid, bundle.spec.normalisation)
        detector = load_checkpoint(model)
        config = detector.config
        return cls(config.encoder.name, weights, config.grid, config.normalisation, int(detector.record["seed"]))

    @cached_property
    def device(self) -> torch.device:
        """Where peers compute: the GPU, if there is one."""
        return choose_device("auto")

    def build(self, layers: tuple[int, ...]) -> SliceEncoder:
        """Build the network, frozen and folded, read at stages `layers`, of stride 2 ** (index + 1).

        Raises
        ------
        SsnError
            If it has no such stages, or its weights are out of reach or do not fit.
        """
        config = EncoderConfig(self.name, layers)
        if self.weights != "none":
            return folded(build_encoder(config, self.weights))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return folded(build_encoder(config, "none"))

    def cut(self, volume: Volume, cells: int) -> SliceStack:
        """Cut a volume into slices, each by itself also where the detector sees the mean of three."""
        return cut_slices(volume, self.grid, cells, self.normalisation)

    def healthy_slices(
        self, paths: Sequence[Path], count: int, progress: Callable[[int, int], None] = lambda step, steps: None
    ) -> Tensor:
        """Slices (n, 1, H, W) that peers learn from, `count` of each healthy volume, evenly spread over its depth."""
        chosen = []
        for index, path in enumerate(paths):
            slices = self.cut(read_volume(path), self.grid.plane // 4).slices
            places = np.linspace(0, len(slices) - 1, count).round().astype(int)
            chosen.append(torch.from_numpy(slices[places]))
            progress(index + 1, len(paths))
        return torch.cat(chosen)[:, None]
