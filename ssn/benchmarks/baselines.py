"""3D networks to compare with, in two groups that are never mixed, with random weights: speed does not depend on them.

Task peers find anomalies in 3D, as the slice pipeline does. Ceilings are supervised segmentation networks: they do
another task, and stand for what 3D networks of this field cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssn.core.errors import BackendError, installing

if TYPE_CHECKING:
    from ssn.benchmarks.volumes import Shape

Group = Literal["task peer", "ceiling"]
SHORT_DEPTH = 32  # slices of the part of a volume on which a heavy network is timed; every network's strides divide it
_HEAVY = 0.3e12  # FLOPs a volume from which on a network is heavy
_WIDE = (32, 64, 128, 256, 512)
_NARROW = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Baseline:
    """One network, and how it is used on a volume.

    Attributes
    ----------
    build : volume shape -> network that maps (1, 1, X, Y, Z) to a tensor of that size
    multiple : each side of a volume is padded to a multiple of it
    passes : times that the network runs a volume (steps of a diffusion)
    patch : the network sees windows of this shape that overlap by half; None: the whole volume at once
    remark : what a reader of its time must know
    """

    name: str
    group: Group
    build: Callable[[Shape], nn.Module]
    multiple: int
    passes: int = 1
    patch: Shape | None = None
    remark: str = ""

    def input_shape(self, volume: Shape) -> Shape:
        """Shape that the network sees: the volume padded, or the window."""
        if self.patch is not None:
            return self.patch
        x, y, z = (-(-side // self.multiple) * self.multiple for side in volume)
        return x, y, z

    def runs(self, volume: Shape) -> int:
        """Count how often the network runs for one volume."""
        if self.patch is None:
            return self.passes
        count = self.passes
        for side, window in zip(volume, self.patch, strict=True):
            count *= max(1, -(-2 * (side - window) // window) + 1)
        return count

    def timed_shape(self, volume: Shape, flops: float, *, full: bool) -> Shape:
        """Shape on which it is timed: a slab of a volume for a heavy network, if not `full`."""
        x, y, z = self.input_shape(volume)
        return (x, y, z) if full or self.patch or flops < _HEAVY or z <= SHORT_DEPTH else (x, y, SHORT_DEPTH)


class FullResolutionAutoencoder(nn.Module):
    """A plain 3D convolutional autoencoder that begins and ends at full resolution, as residual-based detectors use.

    Each level has two 3 x 3 x 3 convolutions with instance norm, and half the resolution of the one before.
    """

    def __init__(self, channels: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()

        def level(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv3d(inputs, outputs, 3, stride, padding=1),
                nn.InstanceNorm3d(outputs, affine=True),
                nn.LeakyReLU(0.01),
                nn.Conv3d(outputs, outputs, 3, padding=1),
                nn.InstanceNorm3d(outputs, affine=True),
                nn.LeakyReLU(0.01),
            )

        self.first = level(1, channels[0], 1)
        self.down = nn.ModuleList(level(a, b, 2) for a, b in pairwise(channels))
        self.up = nn.ModuleList(level(a, b, 1) for a, b in pairwise(channels[::-1]))
        self.last = nn.Conv3d(channels[0], 1, 1)

    def forward(self, volume: Tensor) -> Tensor:
        """Reconstruct (N, 1, X, Y, Z)."""
        x = self.first(volume)
        for level in self.down:
            x = level(x)
        for level in self.up:
            x = level(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        result: Tensor = self.last(x)
        return result


class _AtInference(nn.Module):
    """What of a network maps a volume to its answer; without what only training needs, its input named for export."""

    def __init__(self, network: nn.Module, run: Callable[[nn.Module, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.network, self._run = network, run

    def forward(self, volume: Tensor) -> Tensor:
        """Run it."""
        result: Tensor = self.network(volume) if self._run is None else self._run(self.network, volume)
        return result


def _autoencoder(shape: Shape) -> nn.Module:
    from monai.networks.nets import AutoEncoder

    return AutoEncoder(3, 1, 1, channels=_NARROW, strides=(2, 2, 2, 2, 2), num_res_units=2)


def _vae(shape: Shape) -> nn.Module:
    from monai.networks.nets import VarAutoEncoder

    network = VarAutoEncoder(
        3, (1, *shape), 1, 256, channels=_NARROW, strides=(2, 2, 2, 2, 2), num_res_units=2, use_mean_at_inference=True
    )
    return _AtInference(network, lambda net, volume: net(volume)[0])


def _autoencoder_kl(shape: Shape) -> nn.Module:
    from monai.networks.nets import AutoencoderKL

    network = AutoencoderKL(
        3,
        num_res_blocks=(1, 1, 1),
        channels=(32, 64, 64),
        attention_levels=(False, False, False),
        norm_num_groups=16,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )
    return _AtInference(network, lambda net, volume: net.decode(net.encode(volume)[0]))  # type: ignore[operator]


def _vqvae(shape: Shape) -> nn.Module:
    from monai.networks.nets import VQVAE

    network = VQVAE(3, 1, 1)
    return _AtInference(
        network,
        lambda net, volume: net.decode(net.quantize(net.encode(volume))[0]),  # type: ignore[operator]
    )


def _ddpm(shape: Shape) -> nn.Module:
    from monai.networks.nets import DiffusionModelUNet

    network = DiffusionModelUNet(
        3,
        1,
        1,
        num_res_blocks=2,
        channels=(32, 64, 64, 64),
        attention_levels=(False, False, False, False),
        norm_num_groups=32,
    )
    return _AtInference(network, lambda net, volume: net(volume, torch.ones(1, device=volume.device)))


def _unet(channels: tuple[int, ...], shape: Shape) -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(3, 1, 1, channels, (2, 2, 2, 2), num_res_units=2)


def _segresnet(filters: int, shape: Shape) -> nn.Module:
    from monai.networks.nets import SegResNet

    return SegResNet(init_filters=filters, out_channels=1)


def _dynunet(shape: Shape) -> nn.Module:
    from monai.networks.nets import DynUNet

    strides = [1, 2, 2, 2, 2, 2]
    return DynUNet(3, 1, 1, [3] * 6, strides, strides[1:], filters=(32, 64, 128, 256, 320, 320))


def _swin(shape: Shape) -> nn.Module:
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(1, 1, feature_size=48)


_STEPS = 250
BASELINES: tuple[Baseline, ...] = (
    Baseline("AutoEncoder", "task peer", _autoencoder, 32),
    Baseline("VarAutoEncoder", "task peer", _vae, 32),
    Baseline("full-resolution AE", "task peer", lambda shape: FullResolutionAutoencoder(), 8),
    Baseline("AutoencoderKL", "task peer", _autoencoder_kl, 8),
    Baseline("VQVAE", "task peer", _vqvae, 8),
    Baseline(
        "DDPM UNet", "task peer", _ddpm, 8, passes=_STEPS, remark=f"{_STEPS} steps of denoising, of which one is timed"
    ),
    Baseline("UNet 16-256", "ceiling", partial(_unet, _NARROW), 16),
    Baseline("UNet 32-512", "ceiling", partial(_unet, _WIDE), 16),
    Baseline("SegResNet 16", "ceiling", partial(_segresnet, 16), 8),
    Baseline("SegResNet 32", "ceiling", partial(_segresnet, 32), 8),
    Baseline("DynUNet nnU-Net", "ceiling", _dynunet, 32),
    Baseline(
        "SwinUNETR 48",
        "ceiling",
        _swin,
        32,
        patch=(96, 96, 96),
        remark="sliding window of 96 x 96 x 96 that overlaps by half, as it is used; one window is timed",
    ),
)


def choose_baselines(names: Sequence[str]) -> tuple[Baseline, ...]:
    """Baselines by name, all if none is named.

    Raises
    ------
    BackendError
        If a name is unknown.
    """
    by_name = {baseline.name: baseline for baseline in BASELINES}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise BackendError(f"{', '.join(unknown)}: no such baseline; there are: {', '.join(by_name)}")
    return tuple(by_name[name] for name in names or by_name)


def build_baseline(baseline: Baseline, shape: Shape) -> nn.Module:
    """Build a network with reproducible random weights, ready for inference.

    Raises
    ------
    BackendError
        If MONAI is needed and not installed.
    """
    torch.manual_seed(0)
    try:
        network = baseline.build(shape).eval()
    except ModuleNotFoundError as error:
        raise BackendError(f"{baseline.name}: needs {error.name}; {installing('bench')}") from error
    return network if isinstance(network, _AtInference) else _AtInference(network)
