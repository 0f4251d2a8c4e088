"""One step of training: which locations it looks at, and the gradient of the loss in the flow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssn.core.errors import DataError
from ssn.train.batches import Altered
from ssn.train.checkpoint import Detector
from ssn.train.distributed import Ranks
from ssn.train.losses import total_loss, uses_noised
from ssn.train.presets import FitOptions

# Of the true locations of a step: how many pseudo-anomalous ones come with them, and healthy ones near those.
BLOB_SHARE, HALO_SHARE = 0.5, 0.25


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Own random numbers of each epoch, so that a resumed run draws what an uninterrupted one would."""
    return torch.Generator().manual_seed(seed * 100_003 + epoch)


@dataclass(frozen=True)
class Step:
    """What one step looks at: whitened features (L, C) and places (L,), the anomalous ones last."""

    features: Tensor
    places: Tensor
    anomalous: int


def make_step(
    detector: Detector,
    raw: Tensor,
    places: Tensor,
    altered: Altered | None,
    options: FitOptions,
    epoch: int,
    generator: torch.Generator,
) -> Step:
    """Add the anomalous locations, where the loss looks at any, to a batch of healthy ones."""
    network = detector.network
    device = network.feature_mean.device
    if not uses_noised(options.loss, epoch):
        return Step(network.whitened(raw.to(device)), places.to(device), 0)
    if altered is None:
        features = network.whitened(raw.to(device))
        # Drawn on the CPU, so that every device and every process draws the same.
        noise = torch.randn(features.shape, generator=generator).to(device) * options.noise
        return Step(torch.cat([features, features + noise]), places.repeat(2).to(device), len(raw))
    blob, blob_places = altered.blob.draw(round(len(raw) * BLOB_SHARE), generator)
    halo, halo_places = altered.halo.draw(round(len(raw) * HALO_SHARE), generator)
    features = network.whitened(torch.cat([raw, halo, blob]).to(device))
    return Step(features, torch.cat([places, halo_places, blob_places]).to(device), len(blob))


def backward(
    detector: Detector,
    step: Step,
    options: FitOptions,
    epoch: int,
    generator: torch.Generator,
    ranks: Ranks,
    accumulate: int,
) -> tuple[Tensor, Tensor]:
    """Leave the step's gradient in the flow's parameters, and in whatever made the features where that has one.

    Returns the loss and the mean true log-likelihood.

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

    filled = [piece for piece in range(accumulate) if len(places[piece])]  # a small step has fewer than was asked for
    with torch.set_grad_enabled(accumulate == 1):
        pieces = [log_likelihoods(piece) for piece in filled]
        mine = torch.cat(pieces) if pieces else step.features.new_zeros(0)
    everyone = ranks.gather(mine, total).requires_grad_()
    true, anomalous = everyone[: total - step.anomalous], everyone[total - step.anomalous :]
    loss = total_loss(options.loss, true, anomalous, epoch=epoch, generator=generator)
    if not torch.isfinite(loss):
        raise DataError(f"training diverged in epoch {epoch}; try a smaller --learning-rate")
    loss.backward()
    assert everyone.grad is not None
    gradient = everyone.grad[share]
    if accumulate > 1:
        own = gradient.tensor_split(accumulate)
        for piece in filled:
            log_likelihoods(piece).backward(own[piece])
    elif filled:
        mine.backward(gradient)
    ranks.sum_gradients(p for p in detector.flow.parameters() if p.requires_grad)
    return loss.detach(), true.detach().mean()
