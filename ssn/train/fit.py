"""Training of the flow on healthy volumes' features; the encoder is frozen, unless asked (METHOD.md, Training)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssn.core.errors import DataError
from ssn.core.hashed_files import file_sha256
from ssn.core.outputs import check_folder
from ssn.train.batches import Altered, Pool, epoch_batches
from ssn.train.checkpoint import (
    OPTIMISER_FILE,
    RECORD_FILE,
    Detector,
    build_detector,
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
)
from ssn.train.distributed import ONE_PROCESS, Ranks
from ssn.train.encoder import EncoderWeights, weights_identity
from ssn.train.features import AlteredFeatures, FeatureReader, VolumeFeatures, align_volumes, measure_whitening
from ssn.train.joint import tune_together
from ssn.train.network import FeatureNetwork, ModelConfig
from ssn.train.presets import FitOptions
from ssn.train.step import backward, epoch_generator, make_step


@dataclass(frozen=True)
class Progress:
    """Where training stands, once a batch."""

    epoch: int
    done: float  # share of the epoch, 0..1
    loss: float
    likelihood: float  # mean log-likelihood per dimension


def _train_epoch(
    detector: Detector,
    optimiser: torch.optim.Optimizer,
    volumes: Sequence[VolumeFeatures],
    altered: Altered | None,
    options: FitOptions,
    epoch: int,
    progress: Callable[[Progress], None],
    ranks: Ranks,
    accumulate: int,
) -> dict[str, float]:
    generator = epoch_generator(options.seed, epoch)
    total = sum(max(1, round(len(v.places) * options.share)) for v in volumes)
    seen, sums = 0, {"loss": 0.0, "log_likelihood": 0.0}
    for raw, places in epoch_batches(volumes, options, generator):
        step = make_step(detector, raw, places, altered, options, epoch, generator)
        optimiser.zero_grad(set_to_none=True)
        loss, likelihood = backward(detector, step, options, epoch, generator, ranks, accumulate)
        optimiser.step()
        count = len(places)
        seen += count
        sums["loss"] += float(loss) * count
        sums["log_likelihood"] += float(likelihood) * count
        progress(Progress(epoch, seen / total, sums["loss"] / seen, sums["log_likelihood"] / seen))
    return {name: value / seen for name, value in sums.items()}


def _read_features(
    reader: FeatureReader,
    paths: Sequence[Path],
    options: FitOptions,
    ranks: Ranks,
    on_volume: Callable[[int], None],
    *,
    aligned: bool,
) -> tuple[list[VolumeFeatures], Altered | None]:
    """Features of all volumes; of several processes each computes some, and finds the others' in the cache."""

    def read(index: int) -> tuple[VolumeFeatures, AlteredFeatures | None]:
        seed = options.seed * 100_003 + index
        healthy = reader.features(paths[index])
        return healthy, reader.altered(paths[index], seed, options.blobs) if options.inserts_blobs else None

    if ranks.count > 1:
        for index in range(ranks.rank, len(paths), ranks.count):
            read(index)
        ranks.wait()
    volumes: list[VolumeFeatures] = []
    altered: list[AlteredFeatures] = []
    for index in range(len(paths)):
        own, changed = read(index)
        volumes.append(own)
        altered += [changed] if changed else []
        on_volume(index + 1)
    if aligned:
        align_volumes(volumes, altered)
    if not altered:
        return volumes, None
    return volumes, Altered(Pool.of([a.blob for a in altered]), Pool.of([a.halo for a in altered]))


def fit(
    config: ModelConfig,
    paths: Sequence[Path],
    folder: Path,
    options: FitOptions,
    *,
    cache: Path,
    weights: EncoderWeights = "imagenet",
    resume: bool = False,
    ranks: Ranks = ONE_PROCESS,
    accumulate: int = 1,
    on_volume: Callable[[int], None] = lambda done: None,
    progress: Callable[[Progress], None] = lambda at: None,
) -> Detector:
    """Train a detector on healthy volumes and write a checkpoint to `folder` after every epoch.

    Parameters
    ----------
    paths : NIfTI files of healthy, skull-stripped brains
    cache : folder for the features
    weights : of the encoder: "imagenet", "none", or a safetensors file
    resume : go on from the checkpoint in `folder`, to the same weights as an uninterrupted run
    ranks : the processes that train together, and this one's device; they share `cache` and write one checkpoint
    accumulate : pieces that a step is computed in, for less memory; the result is that of one piece

    Raises
    ------
    DataError
        No volume; a checkpoint of other settings or volumes to resume from; divergence; an encoder to be trained by
        several processes.
    VolumeError
        A volume that cannot be used, named.
    OutputError
        `folder` or `cache` cannot be written to, said before any computing.
    """
    if not paths:
        raise DataError("there is no healthy volume to train on")
    if options.anomalies == "image" and options.loss == "triplet":
        raise DataError("the triplet loss compares a feature with its own noised copy; use --anomalies noise with it")
    if options.tune_encoder and config.aligned:
        raise DataError("--tune-encoder would change the features that --align has aligned; leave out one of them")
    if options.tune_encoder and ranks.count > 1:
        raise DataError(
            "encoder and flow are trained together by one process only; start --tune-encoder without torchrun"
        )
    for place in (folder, cache):
        check_folder(place)
    if resume and not (folder / RECORD_FILE).exists():
        raise DataError(
            f"{folder}: holds no checkpoint to go on from; start without --resume, features that are there are used"
        )
    if resume:
        detector = load_checkpoint(folder)
        detector.flow.train()
        _check_resumable(folder, detector, config, options, paths, weights)
    else:
        torch.manual_seed(options.seed)
        detector = build_detector(config, FeatureNetwork(config, weights).eval(), options.seed)
        record = {
            "options": options.settings(),
            "history": [],
            "volumes": len(paths),
            "made_of": _made_of(paths, weights),
        }
        detector.record |= record
    detector.to(ranks.device)
    if len(detector.record["history"]) < options.epochs:
        _train_flow(
            detector, paths, folder, options, cache, ranks, accumulate, resume=resume, on_volume=on_volume,
            progress=progress,
        )  # fmt: skip
    if options.tune_encoder:
        tune_together(
            detector, paths, folder, options, ranks=ranks,
            progress=lambda *at: progress(Progress(options.epochs + at[0], *at[1:])),
        )  # fmt: skip
    detector.flow.eval()
    return detector.to(torch.device("cpu"))


def _made_of(paths: Sequence[Path], weights: EncoderWeights) -> dict[str, Any]:
    """Tell by contents the volumes, in their order, which decides what each step draws, and the encoder's weights."""
    return {"volumes": [file_sha256(path) for path in paths], "encoder_weights": weights_identity(weights)}


def _check_resumable(
    folder: Path,
    detector: Detector,
    config: ModelConfig,
    options: FitOptions,
    paths: Sequence[Path],
    weights: EncoderWeights,
) -> None:
    record = detector.record
    before, now = record.get("made_of", {}), _made_of(paths, weights)
    if before.get("encoder_weights") != now["encoder_weights"]:
        raise DataError(f"{folder}: was trained with other --encoder-weights; resume with the same ones")
    settings = options.settings()
    if not record.get("tuning"):  # the encoder's rate has decided nothing yet
        record["options"] = record.get("options", {}) | {"encoder_learning_rate": settings["encoder_learning_rate"]}
    if detector.config != config or record.get("options") != settings:
        raise DataError(f"{folder}: was trained with other settings; resume with the same ones")
    if before != now:
        raise DataError(
            f"{folder}: was trained on other volumes ({record.get('volumes')} then, {len(paths)} now); "
            "resume with the same ones, or train into another folder"
        )
    if len(record["history"]) > options.epochs:
        raise DataError(
            f"{folder}: has been trained for {len(record['history'])} epochs, more than the {options.epochs} asked "
            "for; resume with as many or more"
        )
    if record.get("tuning") and len(record["history"]) < options.epochs:
        raise DataError(
            f"{folder}: its encoder has been trained after {len(record['history'])} epochs; no more can follow"
        )


def _train_flow(
    detector: Detector,
    paths: Sequence[Path],
    folder: Path,
    options: FitOptions,
    cache: Path,
    ranks: Ranks,
    accumulate: int,
    *,
    resume: bool,
    on_volume: Callable[[int], None],
    progress: Callable[[Progress], None],
) -> None:
    """Train the flow to the last epoch; a checkpoint after each."""
    reader = FeatureReader(detector.network, cache)
    aligned = detector.config.aligned
    volumes, pools = _read_features(reader, paths, options, ranks, on_volume, aligned=aligned)
    if detector.config.whiten and not resume:
        mean, whitening = measure_whitening(volumes, detector.network.components)
        detector.network.feature_mean.copy_(mean)
        detector.network.whitening.copy_(whitening)
        # Eigenvectors have no sign of their own: another processor may choose another.
        ranks.equalise_([detector.network.feature_mean, detector.network.whitening])
    parameters = [p for p in detector.flow.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=options.learning_rate)
    history: list[dict[str, float]] = detector.record["history"]
    if history:
        restore_optimiser(optimiser, folder / OPTIMISER_FILE, detector.record)
    for epoch in range(len(history), options.epochs):
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * options.decay ** (epoch // options.decay_epochs)
        history.append(_train_epoch(detector, optimiser, volumes, pools, options, epoch, progress, ranks, accumulate))
        if ranks.rank == 0:
            save_checkpoint(folder, detector, optimiser_tensors(optimiser))
        ranks.wait()
