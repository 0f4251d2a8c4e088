"""The two networks of the detector: slices to features, and features to log-likelihood."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ssn import __version__
from ssn.core.alignment import Whitening
from ssn.core.geometry import PAPER_GRID, GridConfig, ThickSlice
from ssn.core.intensity import Normalisation
from ssn.train.aggregation import SlicePool, aggregate
from ssn.train.encoder import COMPACT, PAPER, EncoderConfig, EncoderWeights, build_encoder
from ssn.train.flow import ConditionalFlow, FlowConfig, location_code, sincos_code


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides what the detector computes.

    The defaults are the published method on the whole brain; `paper()` has the published window as well.

    Attributes
    ----------
    width : int or None
        Channels after aggregation, shared equally between the layers; None keeps each layer's own.
    pool : str
        How a window of slices becomes one: its features do ("mean", as published, "max", "attention"), or its images
        do before the encoder, which then has a third of the work ("slab": their mean; "middle"; extensions).
    whiten : bool
        Bring the training set's features to mean 0 and unit covariance by a fixed linear map (extension). The
        flow then starts from a Gaussian model of the features, and the noise of the synthetic anomalies has
        a unit: the features' own spread.
    components : int or None
        Of whitened features the flow sees the principal components that vary most, so many; None: all (extension). The
        flow's work grows with their square.
    hidden : int or None
        Width of the hidden layer of the flow's subnets; None: as wide as their input, as published.
    depth_channels : int
        Channels of the sin/cos code of a window's depth (extension; 0 is the published method).
    occupancy : float
        A map cell counts as brain when this share of it is brain; other cells are neither trained nor computed.
    aligned : bool
        The flow has seen volumes each brought to the mean and covariance of all by its own (extension; of features
        that are all whitened), and sees those that it is asked about brought half of the way, as `ssn-infer` does.
    brain_only : bool
        Leave background out of the 3 x 3 means at the brain's rim (extension; brain is where a slice is not 0;
        with min-max, a volume whose background would not be is refused by `ssn.train.features`).
    """

    encoder: EncoderConfig = PAPER
    grid: GridConfig = field(default_factory=GridConfig)
    normalisation: Normalisation = "robust"
    width: int | None = 512
    pool: SlicePool | ThickSlice = "mean"
    whiten: bool = False
    components: int | None = None
    blocks: int = 8
    hidden: int | None = None
    clamp: float = 1.9
    plane_channels: int = 128
    depth_channels: int = 0
    occupancy: float = 0.5
    brain_only: bool = False
    aligned: bool = False

    def __post_init__(self) -> None:
        if self.components is not None and not self.whiten:
            raise ValueError("components are chosen by whitening: give whiten=True as well")
        if self.aligned and (not self.whiten or self.components is not None):
            raise ValueError("features are aligned to those that were whitened, all of them")

    @classmethod
    def paper(cls) -> ModelConfig:
        """Return the published configuration, for parity: fixed window, min-max, every cell."""
        return cls(grid=PAPER_GRID, normalisation="minmax", occupancy=0.0)

    @classmethod
    def compact(cls) -> ModelConfig:
        """Return the configuration of the shipped model: a small encoder down to stride 4, depth in the code.

        What it does otherwise than published is for speed: the encoder sees the mean of each three slices, and the
        flow has half the blocks and half the location code.
        """
        return cls(
            encoder=COMPACT, width=None, pool="slab", whiten=True, blocks=4, plane_channels=64, depth_channels=32
        )

    @classmethod
    def wide(cls) -> ModelConfig:
        """Return the published encoder and flow with what the compact configuration gained from."""
        return cls(pool="slab", whiten=True, depth_channels=64)

    @property
    def thick(self) -> ThickSlice | None:
        """How a window becomes one slice before the encoder, where it does."""
        match self.pool:
            case "slab" | "middle" as kind:
                return kind
            case _:
                return None

    @property
    def slices_a_window(self) -> int:
        """Slices that the encoder sees of a window."""
        return 1 if self.thick else self.grid.window

    def pooled(self, kind: SlicePool | ThickSlice) -> ModelConfig:
        """Return the same with three slices made one by `kind`; "none" keeps each slice, as windows of one."""
        if kind == "none":
            return replace(self, pool="mean", grid=replace(self.grid, window=1))
        return replace(self, pool=kind)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Read back what `to_dict` gave."""
        encoder = EncoderConfig(**{**values["encoder"], "out_indices": tuple(values["encoder"]["out_indices"])})
        return cls(**{**values, "encoder": encoder, "grid": GridConfig(**values["grid"])})


class FeatureNetwork(nn.Module):
    """Slices to aggregated features: encoder and aggregation; and the whitening of those that the flow sees.

    Buffers `feature_mean` (C,) and `whitening` (K, C) are 0 and the identity's first K rows until the training set has
    been measured; without whitening they stay so, and are not run.

    Attributes
    ----------
    channels : of the features (C)
    components : of whitened features that the flow sees (K): `ModelConfig.components`, or all
    cells : map cells a row (G)
    """

    feature_mean: Tensor
    whitening: Tensor

    def __init__(self, config: ModelConfig, weights: EncoderWeights = "imagenet") -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder, weights)
        self.channels = config.width or sum(self.encoder.channels)
        self.components = min(config.components or self.channels, self.channels)
        self.cells = config.grid.plane // self.encoder.strides[0]
        self.register_buffer("feature_mean", torch.zeros(self.channels))
        self.register_buffer("whitening", torch.eye(self.components, self.channels))

    def forward(self, slices: Tensor) -> Tensor:
        """Map slices (N, 1, H, W) in 0..1 to features before whitening, (N / slices_a_window, C, G, G)."""
        config = self.config
        brain = (slices > 0).float() if config.brain_only else None
        pool = "none" if config.thick else cast("SlicePool", config.pool)
        return aggregate(self.encoder(slices), width=config.width, window=config.grid.window, pool=pool, brain=brain)

    def whitened(self, features: Tensor) -> Tensor:
        """Whiten features in rows (L, C) to (L, K): what the flow is trained on."""
        return (features - self.feature_mean) @ self.whitening.T if self.config.whiten else features

    def own_whitening(self) -> Whitening | None:
        """Whitening that other features may be brought to; None where not all of them are whitened."""
        if not self.config.whiten or self.components < self.channels:
            return None
        weight = self.whitening.double().cpu().numpy()
        bias = -weight @ self.feature_mean.double().cpu().numpy()
        return Whitening(weight.astype(np.float32), bias.astype(np.float32))

    def fingerprint(self) -> str:
        """SHA-256 of what the unwhitened features depend on: release, configuration and encoder weights."""
        config = self.config
        decides = (config.grid, config.normalisation, config.width, config.pool, config.occupancy, config.brain_only)
        # Another release may cut slices in another way.
        digest = hashlib.sha256(repr((__version__, config.encoder, *decides)).encode())
        for name, tensor in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def build_flow(config: ModelConfig, components: int, seed: int) -> ConditionalFlow:
    """Build the flow over features of `components` channels."""
    return ConditionalFlow(
        FlowConfig(
            features=components,
            blocks=config.blocks,
            hidden=config.hidden,
            clamp=config.clamp,
            plane_channels=config.plane_channels,
            depth_channels=config.depth_channels,
        ),
        seed,
    )


class LocationCodes(nn.Module):
    """Location codes of map cells: in-plane code, and depth code where the flow has one.

    A place is `window * G * G + row * G + column`, the window counted in the canonical grid.
    """

    plane: Tensor
    depth: Tensor

    def __init__(self, config: ModelConfig, cells: int) -> None:
        super().__init__()
        plane = location_code((cells, cells), config.plane_channels).flatten(1).T.contiguous()
        self.register_buffer("plane", plane, persistent=False)
        depth = sincos_code(torch.arange(config.grid.windows), config.depth_channels)
        self.register_buffer("depth", depth, persistent=False)

    def forward(self, places: Tensor) -> Tensor:
        """Codes (L, P) of places (L,)."""
        cells = self.plane.shape[0]
        return torch.cat([self.plane[places % cells], self.depth[places // cells]], 1)
