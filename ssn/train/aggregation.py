"""From the encoder's maps to one feature vector a location: no parameters, all linear but `max` and `attention`.

METHOD.md, 'Aggregation'. The paper unfolds 3 x 3 neighbourhoods and pools them adaptively; averages over a
neighbourhood and over neighbouring channels are the same function, need a ninth of the memory, and export to
plain ONNX operators.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_BRAIN = 1e-3  # of a neighbourhood, below which its mean fades to 0

SlicePool = Literal["mean", "max", "attention", "none"]


def aggregate(
    maps: Sequence[Tensor],
    *,
    width: int | None,
    window: int = 3,
    pool: SlicePool = "mean",
    brain: Tensor | None = None,
) -> Tensor:
    """Aggregate the maps of consecutive slices into features.

    Parameters
    ----------
    maps : sequence of Tensor
        One `[N, C_i, H_i, W_i]` a layer, finest first, N slices in order of depth.
    width : int or None
        Channels of the result, shared equally between the layers. None: each layer keeps its own.
    window : int
        Slices a window; windows do not overlap. Ignored when `pool` is "none".
    pool : "mean", "max", "attention" or "none"
        How the slices of a window become one; "none" keeps every slice.
    brain : Tensor, optional
        `[N, 1, H, W]`, 1 in the brain and 0 outside, H and W multiples of every map's. A neighbourhood's mean is
        then weighted by how much of each cell is brain (extension): background has no say at the brain's rim. Where
        a neighbourhood has no brain the result is 0.

    Returns
    -------
    Tensor
        `[N / window, width, H_0, W_0]`; `[N, width, H_0, W_0]` when `pool` is "none".

    Raises
    ------
    ValueError
        N is not a multiple of `window`, `width` not one of the number of layers, or `maps` is empty.
    """
    if not maps:
        raise ValueError("aggregate needs at least one map.")
    if width is not None and width % len(maps):
        raise ValueError(f"width {width} cannot be shared equally between {len(maps)} layers.")
    grid = maps[0].shape[-2:]
    if pool == "mean" and brain is None:
        # Everything below is linear then and treats slices alike, so their mean can come first, at a third of the work.
        maps, pool = [pool_slices(layer, window=window, pool="mean") for layer in maps], "none"
    layers = []
    for layer in maps:
        share = None if brain is None else F.avg_pool2d(brain, kernel_size=brain.shape[-1] // layer.shape[-1])
        pooled = _neighbourhood_mean(layer if share is None else layer * share)
        if width is not None:
            pooled = average_channels(pooled, width // len(maps))
        pooled = _on_grid(pooled, grid)
        if share is not None:
            # Normalised convolution: the sum of what is there, over how much of it there is.
            pooled = pooled / _on_grid(_neighbourhood_mean(share), grid).clamp_min(_LEAST_BRAIN)
        layers.append(pooled)
    return pool_slices(torch.cat(layers, dim=1), window=window, pool=pool)


def _neighbourhood_mean(layer: Tensor) -> Tensor:
    # Zeros beyond the border count in the mean, as they do in an unfold.
    return F.avg_pool2d(layer, kernel_size=3, stride=1, padding=1, count_include_pad=True)


def _on_grid(layer: Tensor, grid: Sequence[int]) -> Tensor:
    if layer.shape[-2:] == grid:
        return layer
    return F.interpolate(layer, size=grid, mode="bilinear", align_corners=False)  # half-pixel


def average_channels(features: Tensor, channels: int) -> Tensor:
    """Average `[N, C, H, W]` over its channels to `[N, channels, H, W]`, as adaptive average pooling does.

    Output channel i is the mean of the input's floor(i C / channels) up to, not including,
    ceil((i + 1) C / channels). Where `channels` divides C these are groups of neighbours; elsewhere they
    overlap, and the means are one product with a fixed matrix.
    """
    n, c, h, w = features.shape
    if c == channels:
        return features
    if c % channels == 0:
        return features.reshape(n, channels, c // channels, h, w).mean(dim=2)
    matrix = _adaptive_means(c, channels).to(features)
    return (matrix @ features.reshape(n, c, h * w)).reshape(n, channels, h, w)


def pool_slices(features: Tensor, *, window: int, pool: SlicePool) -> Tensor:
    """Reduce `[N, C, H, W]` over windows of `window` slices to `[N / window, C, H, W]`.

    "attention" has no parameters: at each place it is the mean weighted by the softmax, over the window's slices, of
    the features' root mean square, so that a slice with a strong response outweighs its neighbours.
    """
    if pool == "none":
        return features
    n, c, h, w = features.shape
    if n % window:
        raise ValueError(f"{n} slices do not fill windows of {window}; pad the volume to a multiple of it.")
    # N stays symbolic under export, hence -1.
    windows = features.reshape(-1, window, c, h, w)
    if pool == "mean":
        return windows.mean(dim=1)
    if pool == "max":
        return windows.amax(dim=1)
    if pool == "attention":
        strength = windows.square().mean(dim=2, keepdim=True).sqrt()
        return (windows * strength.softmax(dim=1)).sum(dim=1)
    raise ValueError(f"pool must be 'mean', 'max', 'attention' or 'none', not '{pool}'.")


def _adaptive_means(given: int, wanted: int) -> Tensor:
    """Return the `[wanted, given]` matrix of adaptive average pooling."""
    matrix = torch.zeros(wanted, given)
    for i in range(wanted):
        start, stop = i * given // wanted, -(-(i + 1) * given // wanted)
        matrix[i, start:stop] = 1.0 / (stop - start)
    return matrix
