"""The conditional normalizing flow: how likely is a feature vector at its place in a healthy brain.

METHOD.md, 'Conditional normalizing flow'. FrEIA's all-in-one coupling blocks, conditioned on a sin/cos code
of the location.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn

from ssn.train.losses import log_likelihood


@dataclass(frozen=True)
class FlowConfig:
    """Shape of the flow; the defaults are the paper's, which has 512 features.

    Attributes
    ----------
    features : int
        C, the length of a feature vector.
    blocks : int
        Coupling blocks in sequence.
    clamp : float
        alpha: a coupling's log-scale is alpha * tanh(a), so that no block scales by more than exp(alpha).
    plane_channels : int
        Length of the code of the place in the plane, a multiple of 4; 0 for none.
    depth_channels : int
        Length of the code of the window's depth, even; 0 for none, as in the paper.
    hidden : int or None
        Width of a subnet's hidden layer; None: as wide as its input, as in the paper.
    """

    features: int
    blocks: int = 8
    clamp: float = 1.9
    plane_channels: int = 128
    depth_channels: int = 0
    hidden: int | None = None

    def __post_init__(self) -> None:
        if self.features < 2 or self.blocks < 1 or self.clamp <= 0:
            raise ValueError(f"A flow needs 2 features, 1 block and a positive clamp at least; got {self}.")
        if self.plane_channels % 4 or self.depth_channels % 2 or min(self.plane_channels, self.depth_channels) < 0:
            raise ValueError(
                "plane_channels must be a multiple of 4 and depth_channels of 2; "
                f"got {self.plane_channels} and {self.depth_channels}."
            )

    @property
    def code_channels(self) -> int:
        """P, the length of the condition: the code of the plane, then that of the depth; 0 is no condition."""
        return self.plane_channels + self.depth_channels


def sincos_code(positions: Tensor, channels: int) -> Tensor:
    """Code positions as sines and cosines, interleaved.

    Channel 2 i is sin(w_i p), channel 2 i + 1 is cos(w_i p), with w_i = 1e4 ^ (-2 i / channels).

    Parameters
    ----------
    positions : Tensor
        `[...]`, in steps of the grid.
    channels : int
        Even.

    Returns
    -------
    Tensor
        `[..., channels]`, float32.
    """
    if channels % 2:
        raise ValueError(f"A sin/cos code has an even number of channels, not {channels}.")
    even = torch.arange(0, channels, 2, dtype=torch.float64, device=positions.device)
    angles = positions.to(torch.float64)[..., None] * torch.exp(-math.log(1e4) * even / max(channels, 1))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2).float()


def location_code(grid: tuple[int, int], plane_channels: int) -> Tensor:
    """Code every place of a plane, `[plane_channels, H, W]`: first half by column, second half by row."""
    h, w = grid
    half = plane_channels // 2
    by_column = sincos_code(torch.arange(w), half).T[:, None, :].expand(half, h, w)
    by_row = sincos_code(torch.arange(h), half).T[:, :, None].expand(half, h, w)
    return torch.cat([by_column, by_row])


class ConditionalFlow(nn.Module):
    """A sequence of affine coupling blocks with fixed rotations, conditioned on a location code.

    Parameters
    ----------
    config : FlowConfig
        Its shape.
    seed : int
        Draws the rotations and the initial weights; the global random states are left as they were. The
        rotations are part of the state dict, so a checkpoint does not depend on scipy's generator.
    """

    def __init__(self, config: FlowConfig, seed: int) -> None:
        super().__init__()
        self.config = config

        def subnet(inputs: int, outputs: int) -> nn.Module:
            hidden = config.hidden or inputs
            return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

        self.inn = SequenceINN(config.features)
        with _seeded(seed):
            for _ in range(config.blocks):
                self.inn.append(
                    AllInOneBlock,
                    cond=0,
                    cond_shape=(config.code_channels,),
                    subnet_constructor=subnet,
                    affine_clamping=config.clamp,
                    global_affine_type="SOFTPLUS",
                    permute_soft=True,
                )

    def z_and_log_det(self, features: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """Map features to the normal space.

        Parameters
        ----------
        features : Tensor
            `[L, C]`.
        code : Tensor
            `[L, P]`.

        Returns
        -------
        z : Tensor
            `[L, C]`.
        log_det : Tensor
            `[L]`, log|det dz/dx|.
        """
        z, log_det = self.inn(features, [code])
        return z, log_det

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """Return the log-likelihood per dimension, `[L]`, of `features` `[L, C]` at `code` `[L, P]`."""
        return log_likelihood(*self.z_and_log_det(features, code)) / self.config.features


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's (CPU) and numpy's global generators inside, and give them back their states after.

    FrEIA draws its rotations with `scipy.stats.special_ortho_group`, which takes numpy's global generator;
    it has no argument for another.
    """
    numpy_state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA's too
            np.random.seed(seed % 2**32)
            yield
    finally:
        np.random.set_state(numpy_state)
