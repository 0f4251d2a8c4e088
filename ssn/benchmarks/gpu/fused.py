"""A ResNet's trunk in cuDNN's fused kernels: convolution, sum and ReLU write memory once instead of three times.

What TensorRT does with this network, from torch, for a GPU that TensorRT refuses. A compiler fuses sums and ReLUs with
each other, but not into cuDNN's convolutions.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssn.train.encoder import SliceEncoder
from ssn.train.folding import folded
from ssn.train.network import FeatureNetwork

_STEM_CHANNELS = 4  # what cuDNN's kernel for a network's first layer reads at once


def is_fusible(network: FeatureNetwork) -> bool:
    """Whether the encoder is a ResNet of bottlenecks, such as WideResNet-50, and the only one to see the slices."""
    blocks = [block for layer in _layers(network.encoder.trunk) for block in layer]
    plain = all(hasattr(block, "conv3") and getattr(block, "se", None) is None for block in blocks)
    return bool(blocks) and plain and not network.config.brain_only


class FusedEncoder(nn.Module):
    """`SliceEncoder` of bottlenecks, with the same maps; on a CPU in plain operators.

    The grey value is normalised in the first convolution, exactly: with g the grey value and 1 a channel of
    ones, sum_c W_c (g - m_c) / s_c is a convolution of [g, 1], and beyond the border both are 0 as (g - m_c) / s_c is.
    Its bias and ReLU come after the maximum, which they do not change, on a quarter of the values.

    Parameters
    ----------
    compiled : pass what cuDNN does not fuse through `torch.compile`
    """

    bias: Tensor

    def __init__(self, encoder: SliceEncoder, *, compiled: bool = False) -> None:
        super().__init__()
        trunk: Any = folded(encoder.trunk)
        stem = trunk.conv1
        weight = stem.weight / encoder.std
        self.stem = nn.Conv2d(
            _STEM_CHANNELS, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=False
        )
        with torch.no_grad():
            self.stem.weight.zero_()
            self.stem.weight[:, 0] = weight.sum(1)
            self.stem.weight[:, 1] = -(weight * encoder.mean).sum(1)
        self.register_buffer("bias", stem.bias.detach().view(-1, 1, 1).clone())
        self.pool = trunk.maxpool
        self.layers = nn.ModuleList(_layers(trunk))
        with torch.no_grad():
            for block in self._blocks():
                if block.downsample is not None:  # both are summed: one bias does for both
                    block.conv3.bias += block.downsample[0].bias
                    block.downsample[0].bias = None
        self.kept = len(encoder.channels)
        self.requires_grad_(False)
        self._after_stem = torch.compile(self._pooled, dynamic=False) if compiled else self._pooled
        self._inputs: dict[tuple[int, ...], Tensor] = {}

    def _blocks(self) -> list[Any]:
        return [block for layer in self.layers for block in layer]  # type: ignore[attr-defined]

    def _pooled(self, x: Tensor) -> Tensor:
        return torch.relu(self.pool(x) + self.bias)

    def forward(self, slices: Tensor) -> list[Tensor]:
        """Compute the maps of the last layers, finest first; one call after the other, on one stream."""
        x = self._input(slices)
        x[:, :1] = slices
        x = self._after_stem(self.stem(x))
        maps = []
        for layer in self.layers:
            for block in layer:  # type: ignore[attr-defined]
                shortcut = x if block.downsample is None else block.downsample[0](x)
                x = _sum_relu(block.conv3, _relu(block.conv2, _relu(block.conv1, x)), shortcut)
            maps.append(x)
        return maps[-self.kept :]

    def _input(self, slices: Tensor) -> Tensor:
        """Channels of the first convolution, whose first is to be written; made once for each shape."""
        count, _, height, width = slices.shape
        shape = (count, _STEM_CHANNELS, height, width)
        if shape not in self._inputs:
            made = torch.zeros(shape, dtype=slices.dtype, device=slices.device)
            made[:, 1] = 1
            self._inputs[shape] = made.contiguous(memory_format=torch.channels_last)
        return self._inputs[shape]


class FusedNetwork(nn.Module):
    """`FeatureNetwork` over a `FusedEncoder`; its aggregation is as it was."""

    def __init__(self, network: FeatureNetwork, *, compiled: bool = False) -> None:
        super().__init__()
        self.encoder = FusedEncoder(network.encoder, compiled=compiled)
        rest: Any = copy.deepcopy(network)
        rest.encoder = nn.Identity()  # what it is given are the maps
        self.rest = rest
        self._aggregated = torch.compile(rest, dynamic=False) if compiled else rest

    def forward(self, slices: Tensor) -> Tensor:
        """Map slices (N, 1, H, W) in 0..1 to features before whitening, (windows, C, G, G)."""
        result: Tensor = self._aggregated(self.encoder(slices))
        return result


def _layers(trunk: nn.Module) -> list[Any]:
    return [child for name, child in trunk.named_children() if name.startswith("layer")]


def _relu(convolution: Any, x: Tensor) -> Tensor:
    c = convolution
    if not x.is_cuda:
        return F.relu(c(x))
    return torch.cudnn_convolution_relu(x, c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups)


def _sum_relu(convolution: Any, x: Tensor, other: Tensor) -> Tensor:
    c = convolution
    if not x.is_cuda:
        return F.relu(c(x) + other)
    return torch.cudnn_convolution_add_relu(x, c.weight, other, 1.0, c.bias, c.stride, c.padding, c.dilation, c.groups)
