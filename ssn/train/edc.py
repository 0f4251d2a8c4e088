"""The network that fine-tunes an encoder: encoder, bottleneck, and a decoder that mirrors it (docs/train.md, finetune).

After Guo et al., *Encoder-Decoder Contrast for Unsupervised Anomaly Detection in Medical Images* (IEEE TMI 2023):
the decoder learns to say what the encoder says at three levels, while the encoder learns through the decoder, not
through the comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssn.train.encoder import EncoderConfig, EncoderWeights, build_encoder

LEVELS = 3
BATCH_NORM_MOMENTUM = 0.01


def contrast_loss(encoded: Sequence[Tensor], decoded: Sequence[Tensor]) -> Tensor:
    """Sum over levels of 1 - cos(flatten(decoder), flatten(stopgrad(encoder))), mean over the batch; a scalar ().

    Parameters
    ----------
    encoded, decoded : of each level, (N, C, H, W); each sample is flattened to one vector
    """
    distances = [
        1 - F.cosine_similarity(theirs.float().flatten(1), ours.detach().float().flatten(1), dim=1)
        for ours, theirs in zip(encoded, decoded, strict=True)
    ]
    return torch.stack(distances).sum(0).mean()


def _halving(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Bottleneck(nn.Module):
    """All levels brought to the deepest one's grid, concatenated, and halved once more.

    `[N, channels[i], H_i, W_i]` -> `[N, 2 * channels[-1], H_last / 2, W_last / 2]`.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        deepest = channels[-1]
        self.down = nn.ModuleList(
            nn.Sequential(
                *(_halving(width if step == 0 else deepest, deepest) for step in range(len(channels) - 1 - level))
            )
            for level, width in enumerate(channels)
        )
        together = deepest * len(channels)
        self.fuse = nn.Sequential(
            nn.Conv2d(together, deepest, 1, bias=False),
            nn.BatchNorm2d(deepest),
            nn.ReLU(),
            _halving(deepest, 2 * deepest),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse the encoder's maps, finest first."""
        return self.fuse(torch.cat([down(level) for down, level in zip(self.down, maps, strict=True)], dim=1))


class _UpBlock(nn.Module):
    """Residual block that doubles the grid. Its sum is not rectified: encoders give signed features too."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ReLU(),
            nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.shortcut(x)


class Decoder(nn.Module):
    """The encoder's levels in reverse: `[N, 2 C_last, h, w]` -> one map a level, finest first."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        widths = [2 * channels[-1], *reversed(channels)]
        self.blocks = nn.ModuleList(_UpBlock(*pair) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Decode the bottleneck's features."""
        maps: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            maps.insert(0, x)
        return maps


class EncoderDecoder(nn.Module):
    """Encoder, bottleneck and decoder; the encoder is trainable here, unlike as built.

    Parameters
    ----------
    config : the encoder as the detector will read it. Here the three levels down to its deepest one are
        compared; the weights are those of the same trunk, whichever of its levels are read.
    weights : as `build_encoder` takes them
    """

    def __init__(self, config: EncoderConfig, weights: EncoderWeights) -> None:
        super().__init__()
        deepest = config.out_indices[-1]
        levels = tuple(range(max(deepest - LEVELS + 1, 0), deepest + 1))
        self.encoder = build_encoder(replace(config, out_indices=levels), weights).requires_grad_(True)
        self.bottleneck = Bottleneck(self.encoder.channels)
        self.decoder = Decoder(self.encoder.channels)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = BATCH_NORM_MOMENTUM

    @property
    def multiple(self) -> int:
        """Height and width of the slices must be a multiple of this many pixels."""
        return 2 * self.encoder.strides[-1]

    def forward(self, slices: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Map slices `[N, 1, H, W]` in 0..1 to the encoder's and the decoder's maps, finest first."""
        encoded = self.encoder(slices)
        return encoded, self.decoder(self.bottleneck(encoded))
