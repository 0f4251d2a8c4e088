"""The arms of an ablation: what each question varies, one thing at a time, about a base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ssn.core.errors import DataError
from ssn.core.geometry import ThickSlice
from ssn.train.aggregation import SlicePool
from ssn.train.encoder import EncoderWeights, build_encoder, weights_identity
from ssn.train.losses import LossKind
from ssn.train.network import ModelConfig
from ssn.train.presets import FitOptions

Question = Literal[
    "loss", "encoder", "aggregation", "code", "anomalies", "decay", "slices", "whitening", "alignment", "flow", "width",
    "calibration", "normalisation", "rim",
]  # fmt: skip
QUESTIONS: tuple[Question, ...] = get_args(Question)
Scoring = Literal["place", "brain", "volume"]

PLANE_CHANNELS, DEPTH_CHANNELS = 128, 64
BLOCKS = (8, 4, 2)
COMPONENTS, HIDDEN = (128, 88), (96, 48)
FEWER_BLOBS, DECAYS = 12, (0.6, 0.9)
TUNING_ROUNDS = 20  # of `ssn.train.joint`: 160 steps of 24 slices


@dataclass(frozen=True)
class Arm:
    """One way to train and score. `question` is what it varies, `value` how; the base answers every question.

    Attributes
    ----------
    run : name of its files; the base's is the same under every question, so that it is trained once
    scoring : what a log-likelihood is compared with before it is a score: healthy volumes at its place ("place"),
        or anywhere in the brain ("brain"), or its own volume, whose map is rescaled to 0..1 as the published
        evaluation does with its own map, max(exp) - exp ("volume")
    """

    question: Question
    value: str
    run: str
    config: ModelConfig
    options: FitOptions
    weights: EncoderWeights
    scoring: Scoring = "place"

    def training(self, seed: int) -> dict[str, Any]:
        """Everything that decides the trained model, in plain values."""
        options = replace(self.options, seed=seed)
        weights = weights_identity(self.weights)
        plain = {"config": self.config.to_dict(), "options": asdict(options), "weights": weights}
        return json.loads(json.dumps(plain))  # type: ignore[no-any-return]  # tuples become lists, as they are when read back

    def settings(self, seed: int) -> dict[str, Any]:
        """Everything that decides its result, in plain values."""
        return self.training(seed) | {"scoring": self.scoring}


def plan_arms(
    questions: Sequence[Question],
    config: ModelConfig,
    options: FitOptions,
    weights: EncoderWeights,
    tuned: Path | None = None,
) -> list[Arm]:
    """List the arms of some questions about a base (`config`, `options`, `weights`).

    Parameters
    ----------
    tuned : weights of an encoder fine-tuned before, for the question "encoder"

    Raises
    ------
    DataError
        If the question "encoder" is asked and `tuned` is not given, or another that this base has no answer to.
    """
    base = Arm("loss", options.loss, "base", config, options, weights)
    arms = []
    for question in questions:
        variants = _variants(question, base, tuned)
        same = [value for value, arm in variants.items() if arm.settings(0) == base.settings(0)]
        for value, arm in variants.items():
            run = "base" if value in same else f"{question}-{value}"
            arms.append(replace(arm, question=question, value=value, run=run))
    return arms


def _variants(question: Question, base: Arm, tuned: Path | None) -> dict[str, Arm]:
    """Arms of a question by the value that each gives it."""
    options = base.options
    match question:
        case "loss":
            arms = {kind: replace(base, options=_with_loss(options, kind)) for kind in get_args(LossKind)}
        case "encoder":
            together = replace(options, tune_encoder=options.tune_encoder or TUNING_ROUNDS)
            own = {"imagenet": "imagenet", "none": "random"}.get(str(base.weights), "as given")
            arms = {
                own: base,
                "tuned before": replace(base, weights=_usable(tuned, base.config)),
                "tuned during": replace(base, options=together),
            }
        case "aggregation":
            arms = _pooled(base, ("mean", "max", "attention", "none"))
        case "slices":
            arms = _pooled(base, ("mean", "slab", "middle"))
        case "anomalies":
            arms = _pushing_away(base)
        case "decay":
            arms = _decayed(base)
        case "alignment":
            arms = _aligned(base)
        case "calibration":
            arms = {scoring: replace(base, scoring=scoring) for scoring in get_args(Scoring)}
        case _:
            arms = {value: replace(base, config=config) for value, config in _models(question, base.config).items()}
    return arms


def _models(question: Question, config: ModelConfig) -> dict[str, ModelConfig]:
    """Return the configurations of a question about the model itself, by the value that each gives it."""
    plane, depth = config.plane_channels or PLANE_CHANNELS, config.depth_channels or DEPTH_CHANNELS
    match question:
        case "code":
            codes = {"none": (0, 0), "in-plane": (plane, 0), "in-plane + depth": (plane, depth)}
            return {name: replace(config, plane_channels=p, depth_channels=d) for name, (p, d) in codes.items()}
        case "whitening":
            return {
                "whitened": replace(config, whiten=True),
                "as they are": replace(config, whiten=False, components=None),
            }
        case "flow":
            counts = sorted({*BLOCKS, config.blocks}, reverse=True)
            return {f"{blocks} blocks": replace(config, blocks=blocks) for blocks in counts}
        case "width":
            # Components are chosen by whitening: without it they would change two things at once.
            fewer = COMPONENTS if config.whiten else ()
            return {
                "full": config,
                **{f"{count} components": replace(config, components=count) for count in fewer},
                **{f"hidden layers of {size}": replace(config, hidden=size) for size in HIDDEN},
                "code twice as long": replace(
                    config, plane_channels=2 * config.plane_channels, depth_channels=2 * config.depth_channels
                ),
            }
        case "normalisation":
            return {
                "robust": replace(config, normalisation="robust"),
                "minmax": replace(config, normalisation="minmax"),
            }
        case "rim":
            sides = {"with background": False, "brain only": True}
            return {name: replace(config, brain_only=only) for name, only in sides.items()}
        case _:
            raise ValueError(f"{question}: no question about the model")


def _pooled(base: Arm, pools: Sequence[SlicePool | ThickSlice]) -> dict[str, Arm]:
    """Arms that make one slice of a window in these ways, and the base, whose own may be another."""
    if base.config.grid.window == 1:
        raise DataError("with --pool none there are no three slices to make one of; ask this with another --pool")
    arms: dict[str, Arm] = {pool: replace(base, config=base.config.pooled(pool)) for pool in pools}
    return {**arms, base.config.pool: base}


def _pushing_away(base: Arm) -> dict[str, Arm]:
    """Arms by what the contrastive term pushes away."""
    options = base.options
    if options.loss not in ("spp", "hard"):
        raise DataError(f"loss {options.loss!r} cannot choose its anomalies; ask 'anomalies' with spp or hard")
    image = replace(options, anomalies="image")
    chosen = {
        "noise": replace(options, anomalies="noise"),
        "image": image,
        f"image, {FEWER_BLOBS} blobs": replace(image, blobs=FEWER_BLOBS),
    }
    return {name: replace(base, options=options) for name, options in chosen.items()}


def _decayed(base: Arm) -> dict[str, Arm]:
    """Arms whose learning rate falls at these rates, and the base, whose own may be another."""
    own = (base.options.decay, base.options.decay_epochs)
    return {
        f"{rate:g} an epoch" if epochs == 1 else f"{rate:g} every {epochs} epochs": replace(
            base, options=replace(base.options, decay=rate, decay_epochs=epochs)
        )
        for rate, epochs in dict.fromkeys([*((rate, 1) for rate in DECAYS), own])
    }


def _aligned(base: Arm) -> dict[str, Arm]:
    """Arms whose volumes are aligned by their own features, or not."""
    if not base.config.whiten:
        raise DataError("features that are not whitened cannot be aligned; ask this with another --preset")
    ways = {"none": False, "by itself": True}
    return {name: replace(base, config=replace(base.config, aligned=aligned)) for name, aligned in ways.items()}


def _usable(tuned: Path | None, config: ModelConfig) -> Path:
    if tuned is None:
        raise DataError("the question 'encoder' compares with a fine-tuned one; give --tuned FILE (finetune's)")
    if not tuned.is_file():
        raise DataError(f"{tuned}: no such encoder weights file")
    build_encoder(config.encoder, tuned)  # raises where they are not this encoder's: before any arm is trained
    return tuned


def _with_loss(options: FitOptions, kind: LossKind) -> FitOptions:
    # The triplet loss compares a feature with its own noised copy; it knows no other anomalies.
    return replace(options, loss=kind, anomalies="noise" if kind == "triplet" else options.anomalies)
