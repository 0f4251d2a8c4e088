"""Models and how they are trained, by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ssn.train.losses import PUSHING_LOSSES, LossKind
from ssn.train.network import ModelConfig


@dataclass(frozen=True)
class FitOptions:
    """How to train. The defaults are the published ones.

    Attributes
    ----------
    batch : int
        Locations a step.
    anomalies : "noise" or "image"
        What the contrastive term pushes away: the features with noise on them, as published, or features of
        pseudo-anomalies in the image (`ssn.train.pseudo`; extension, not with `loss` "triplet").
    blobs : int
        How many pseudo-anomalies are tried in each volume; those that would overlap another are left out.
    noise : float
        Standard deviation of the noise that makes a synthetic anomaly of a feature, in features' units
        (standard deviations, where they are whitened).
    share : float
        Share of each volume's locations seen in an epoch, drawn anew each time.
    mix : int
        Volumes whose locations are shuffled together; 1 shuffles within a volume.
    precision : "fp32" or "bf16"
        Of the flow's matrix products; weights and gradients stay in FP32, but on a CPU "bf16" sums each block's
        log-determinant in bfloat16. On a processor with bfloat16 instructions it takes a third of the time.
    tune_encoder : int
        Rounds in which encoder and flow are trained together, after the epochs on the frozen encoder's
        features (`ssn.train.joint`); 0 leaves the encoder as it is.
    encoder_learning_rate : float
        Adam's, of the encoder in those rounds.
    """

    epochs: int = 30
    batch: int = 4096
    learning_rate: float = 1e-3
    decay_epochs: int = 10
    decay: float = 0.9
    loss: LossKind = "spp"
    anomalies: Literal["noise", "image"] = "noise"
    blobs: int = 36
    noise: float = 0.08
    share: float = 1.0
    mix: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    tune_encoder: int = 0
    encoder_learning_rate: float = 1e-5

    @property
    def inserts_blobs(self) -> bool:
        """Whether pseudo-anomalies are put into the images: the loss has to push something away."""
        return self.anomalies == "image" and self.loss in PUSHING_LOSSES

    def settings(self) -> dict[str, Any]:
        """Plain values of everything but the lengths of training, which a resumed run may raise."""
        return {name: value for name, value in asdict(self).items() if name not in ("epochs", "tune_encoder")}


# Few passes of small steps, so that a CPU trains the compact model in minutes; the rate ends at a hundredth.
COMPACT_OPTIONS = FitOptions(
    epochs=10, batch=1024, share=0.15, mix=30, decay_epochs=1, decay=0.6, anomalies="image", precision="bf16"
)

Preset = Literal["compact", "wide", "paper", "parity"]


def preset(name: Preset) -> tuple[ModelConfig, FitOptions]:
    """Model and training by name.

    `compact` is the shipped model's; `wide` the published encoder with all that won on the compact one; `paper` the
    published method on the whole brain; `parity` the published method on its fixed window of 96 slices, with min-max
    intensities, for comparison with published figures.
    """
    match name:
        case "compact":
            return ModelConfig.compact(), COMPACT_OPTIONS
        case "wide":
            return ModelConfig.wide(), COMPACT_OPTIONS
        case "paper":
            return ModelConfig(), FitOptions()
        case "parity":
            return ModelConfig.paper(), FitOptions()
