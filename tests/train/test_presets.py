"""The models and trainings that have a name."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

from ssn.cli.options import PresetOption
from ssn.train.network import ModelConfig
from ssn.train.presets import Preset, preset

# What the published network is made of; everything else of `ModelConfig` is ours to choose.
PUBLISHED_NETWORK = ("encoder", "width", "blocks", "hidden", "clamp", "plane_channels")


def test_the_command_line_offers_every_preset():
    choices, *_ = get_args(PresetOption)
    assert get_args(choices) == get_args(Preset)


def test_wide_is_the_published_network_trained_as_the_compact_one():
    wide, training = preset("wide")
    compact, compact_training = preset("compact")
    published, _ = preset("paper")
    assert training == compact_training
    for field in fields(ModelConfig):
        if field.name in PUBLISHED_NETWORK:
            assert getattr(wide, field.name) == getattr(published, field.name), field.name
        elif field.name != "depth_channels":
            assert getattr(wide, field.name) == getattr(compact, field.name), field.name
    # The compact code has half the channels, for the plane and for the depth.
    assert wide.depth_channels * compact.plane_channels == compact.depth_channels * wide.plane_channels


def test_only_parity_has_the_published_window():
    windows = {name: preset(name)[0].grid.paper for name in get_args(Preset)}
    assert [name for name, paper in windows.items() if paper] == ["parity"]
