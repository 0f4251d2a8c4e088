"""Training of the flow on healthy volumes' features; the encoder is frozen (METHOD.md, Training)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssn.core.errors import DataError
from ssn.train.batches import Altered, Pool, epoch_batches
from ssn.train.checkpoint import (
    OPTIMISER_FILE,
    Detector,
    build_detector,
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
)
from ssn.train.distributed import ONE_PROCESS, Ranks
from ssn.train.features import AlteredFeatures, FeatureReader, VolumeFeatures, measure_whitening
from ssn.train.losses import PUSHING_LOSSES, Loss, total_loss, uses_noised
from ssn.train.network import FeatureNetwork, ModelConfig
from ssn.train.presets import FitOptions

# Of the true locations of a step: how many pseudo-anomalous ones come with them, and healthy ones near those.
BLOB_SHARE, HALO_SHARE = 0.5, 0.25


@dataclass(frozen=True)
class Progress:
    """Where training stands, once a batch."""

    epoch: int
    done: float  # share of the epoch, 0..1
    loss: float
    likelihood: float  # mean log-likelihood per dimension


def _generator(seed: int, epoch: int) -> torch.Generator:
    """Own random numbers of each epoch, so that a resumed run draws what an uninterrupted one would."""
    return torch.Generator().manual_seed(seed * 100_003 + epoch)


@dataclass(frozen=True)
class _Step:
    """What one step looks at: whitened features (L, C) and places (L,), the anomalous ones last."""

    features: Tensor
    places: Tensor
    anomalous: int


def _step(
    detector: Detector,
    raw: Tensor,
    places: Tensor,
    altered: Altered | None,
    options: FitOptions,
    epoch: int,
    generator: torch.Generator,
) -> _Step:
    """Add the anomalous locations, where the loss looks at any, to a batch of healthy ones."""
    network = detector.network
    device = network.feature_mean.device
    if not uses_noised(options.loss, epoch):
        return _Step(network.whitened(raw.to(device)), places.to(device), 0)
    if altered is None:
        features = network.whitened(raw.to(device))
        # Drawn on the CPU, so that every device and every process draws the same.
        noise = torch.randn(features.shape, generator=generator).to(device) * options.noise
        return _Step(torch.cat([features, features + noise]), places.repeat(2).to(device), len(raw))
    blob, blob_places = altered.blob.draw(round(len(raw) * BLOB_SHARE), generator)
    halo, halo_places = altered.halo.draw(round(len(raw) * HALO_SHARE), generator)
    features = network.whitened(torch.cat([raw, halo, blob]).to(device))
    return _Step(features, torch.cat([places, halo_places, blob_places]).to(device), len(blob))


def _backward(
    detector: Detector,
    step: _Step,
    options: FitOptions,
    epoch: int,
    generator: torch.Generator,
    ranks: Ranks,
    accumulate: int,
) -> tuple[Loss, Tensor]:
    """Leave the step's gradient in the flow's parameters; return the loss and the mean true log-likelihood.

    The loss sees the log-likelihoods of the whole batch, wherever and in however many pieces they were
    computed, so neither processes nor pieces change it. In pieces the flow runs twice: once for the loss's
    gradient with respect to the log-likelihoods, and once, a piece at a time, to send that through the flow (the
    gradient cache of Gao et al., *Scaling Deep Contrastive Learning Batch Size*, 2021).
    """
    total = len(step.places)
    share = ranks.share(total)
    features = step.features[share].tensor_split(accumulate)
    places = step.places[share].tensor_split(accumulate)

    def log_likelihoods(piece: int) -> Tensor:
        # One pass over true and anomalous together is right, because the flow has no statistics over the batch.
        with torch.autocast(step.features.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            result: Tensor = detector.flow(features[piece], detector.codes(places[piece]))
        return result.float()

    with torch.set_grad_enabled(accumulate == 1):
        mine = torch.cat([log_likelihoods(piece) for piece in range(accumulate)])
    everyone = ranks.gather(mine, total).requires_grad_()
    true, anomalous = everyone[: total - step.anomalous], everyone[total - step.anomalous :]
    loss = total_loss(options.loss, true, anomalous if step.anomalous else None, epoch=epoch, generator=generator)
    if not torch.isfinite(loss.total):
        raise DataError(f"training diverged in epoch {epoch}; try a smaller --learning-rate")
    loss.total.backward()
    assert everyone.grad is not None
    gradient = everyone.grad[share]
    if accumulate == 1:
        mine.backward(gradient)
    else:
        for piece, own in enumerate(gradient.tensor_split(accumulate)):
            log_likelihoods(piece).backward(own)
    ranks.sum_gradients(p for p in detector.flow.parameters() if p.requires_grad)
    return loss, true.detach().mean()


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
    generator = _generator(options.seed, epoch)
    total = sum(max(1, round(len(v.places) * options.share)) for v in volumes)
    seen, sums = 0, {"loss": 0.0, "log_likelihood": 0.0}
    for raw, places in epoch_batches(volumes, options, generator):
        step = _step(detector, raw, places, altered, options, epoch, generator)
        optimiser.zero_grad(set_to_none=True)
        loss, likelihood = _backward(detector, step, options, epoch, generator, ranks, accumulate)
        optimiser.step()
        count = len(places)
        seen += count
        sums["loss"] += float(loss.total.detach()) * count
        sums["log_likelihood"] += float(likelihood) * count
        progress(Progress(epoch, seen / total, sums["loss"] / seen, sums["log_likelihood"] / seen))
    return {name: value / seen for name, value in sums.items()}


def _read_features(
    reader: FeatureReader,
    paths: Sequence[Path],
    options: FitOptions,
    ranks: Ranks,
    on_volume: Callable[[int], None],
) -> tuple[list[VolumeFeatures], Altered | None]:
    """Features of all volumes; of several processes each computes some, and finds the others' in the cache."""
    wants_altered = options.anomalies == "image" and options.loss in PUSHING_LOSSES

    def read(index: int) -> tuple[VolumeFeatures, AlteredFeatures | None]:
        seed = options.seed * 100_003 + index
        return reader.features(paths[index]), reader.altered(paths[index], seed) if wants_altered else None

    if ranks.count > 1:
        for index in range(ranks.rank, len(paths), ranks.count):
            read(index)
        ranks.wait()
    volumes, altered = [], []
    for index in range(len(paths)):
        own, changed = read(index)
        volumes.append(own)
        altered += [changed] if changed else []
        on_volume(index + 1)
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
    weights: Any = "imagenet",  # noqa: ANN401 - as build_encoder takes them
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
        No volume; a checkpoint of other settings to resume from; divergence.
    VolumeError
        A volume that cannot be used, named.
    """
    if not paths:
        raise DataError("there is no healthy volume to train on")
    if options.anomalies == "image" and options.loss == "triplet":
        raise DataError("the triplet loss compares a feature with its own noised copy; use --anomalies noise with it")
    settings = {name: value for name, value in asdict(options).items() if name != "epochs"}
    if resume:
        detector = load_checkpoint(folder)
        detector.flow.train()
        if detector.config != config or detector.record.get("options") != settings:
            raise DataError(f"{folder}: was trained with other settings; resume with the same ones")
    else:
        torch.manual_seed(options.seed)
        detector = build_detector(config, FeatureNetwork(config, weights).eval(), options.seed)
        detector.record |= {"options": settings, "history": [], "volumes": len(paths)}
    detector.to(ranks.device)
    volumes, pools = _read_features(FeatureReader(detector.network, cache), paths, options, ranks, on_volume)
    if config.whiten and not resume:
        mean, whitening = measure_whitening(volumes)
        detector.network.feature_mean.copy_(mean)
        detector.network.whitening.copy_(whitening)
        # Eigenvectors have no sign of their own: another processor may choose another.
        ranks.equalise_([detector.network.feature_mean, detector.network.whitening])
    parameters = [p for p in detector.flow.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=options.learning_rate)
    if resume and (folder / OPTIMISER_FILE).exists():
        restore_optimiser(optimiser, folder)
    history: list[dict[str, float]] = detector.record["history"]
    for epoch in range(len(history), options.epochs):
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * options.decay ** (epoch // options.decay_epochs)
        history.append(_train_epoch(detector, optimiser, volumes, pools, options, epoch, progress, ranks, accumulate))
        if ranks.rank == 0:
            save_checkpoint(folder, detector, optimiser_tensors(optimiser))
        ranks.wait()
    detector.flow.eval()
    return detector.to(torch.device("cpu"))
