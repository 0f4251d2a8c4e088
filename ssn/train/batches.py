"""Batches of locations: healthy ones in a new order each epoch, pseudo-anomalous ones drawn at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssn.train.features import VolumeFeatures
from ssn.train.presets import FitOptions


def epoch_batches(
    volumes: Sequence[VolumeFeatures], options: FitOptions, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of features (batch, C) float32 and places (batch,), each location at most once."""
    order = torch.randperm(len(volumes), generator=generator).tolist()
    for start in range(0, len(order), options.mix):
        features, places = [], []
        for index in order[start : start + options.mix]:
            volume = volumes[index]
            count = max(1, round(len(volume.places) * options.share))
            chosen = torch.randperm(len(volume.places), generator=generator)[:count]
            features.append(volume.features[chosen])
            places.append(volume.places[chosen])
        together, where = torch.cat(features), torch.cat(places)
        shuffled = torch.randperm(len(where), generator=generator)
        for chosen in shuffled.split(options.batch):
            yield together[chosen].float(), where[chosen]


@dataclass(frozen=True)
class Pool:
    """Locations of many volumes, drawn from with replacement."""

    features: Tensor
    places: Tensor

    @classmethod
    def of(cls, volumes: Sequence[VolumeFeatures]) -> Pool:
        """Pool the locations of some volumes."""
        return cls(torch.cat([v.features for v in volumes]), torch.cat([v.places for v in volumes]))

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw features (count, C) float32 and places (count,)."""
        chosen = torch.randint(len(self.places), (count,), generator=generator)
        return self.features[chosen].float(), self.places[chosen]


@dataclass(frozen=True)
class Altered:
    """Pseudo-anomalous locations, and healthy ones near them, of all training volumes."""

    blob: Pool
    halo: Pool
