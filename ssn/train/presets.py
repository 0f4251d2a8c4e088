"""Models and how they are trained, by name."""

from __future__ import annotations

from typing import Literal

from ssn.train.fit import FitOptions
from ssn.train.network import ModelConfig

# For the compact model: enough steps on the cohort in half an hour on two cores.
COMPACT_OPTIONS = FitOptions(
    epochs=30, share=0.15, mix=30, decay_epochs=1, decay=0.9, anomalies="image", precision="bf16"
)

Preset = Literal["compact", "paper", "parity"]


def preset(name: Preset) -> tuple[ModelConfig, FitOptions]:
    """Model and training by name.

    `compact` is the shipped model's; `paper` the published method on the whole brain; `parity` the published
    method on its fixed window of 96 slices, with min-max intensities, for comparison with published figures.
    """
    if name == "compact":
        return ModelConfig.compact(), COMPACT_OPTIONS
    return (ModelConfig() if name == "paper" else ModelConfig.paper()), FitOptions()
