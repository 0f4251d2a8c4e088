"""Training of encoder and flow together: the ablation's arm of an encoder fine-tuned during training (METHOD.md).

It starts from the flow that `ssn.train.fit` trained on the frozen encoder's features, with the whitening measured
there, and goes on for a limited number of steps in which the encoder takes part: a step of 24 slices costs about
a second on one CPU core, where a frozen encoder's slices are computed once. From the first step on it would cost the
encoder's pass over every slice in every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssn.core.slices import SliceStack
from ssn.core.volume import read_volume
from ssn.train.checkpoint import OPTIMISER_FILE, Detector, optimiser_tensors, restore_optimiser, save_checkpoint
from ssn.train.distributed import Ranks
from ssn.train.features import stack_for
from ssn.train.presets import FitOptions
from ssn.train.pseudo import insert_blobs
from ssn.train.step import Step, backward, epoch_generator, make_step

SLICES_A_STEP = 24
STEPS_A_ROUND = 8  # that share what is read from disk
VOLUMES_A_ROUND = 4


@dataclass(frozen=True)
class _Windows:
    """Windows of slices, and what each of their map cells is.

    Attributes
    ----------
    slices : (n, window, H, W) float32
    places : (n, G * G) int64
    brain : (n, G * G) bool, cells that count
    coverage : (n, G * G) float32, share of a cell that is pseudo-anomaly
    """

    slices: Tensor
    places: Tensor
    brain: Tensor
    coverage: Tensor

    @classmethod
    def cat(cls, parts: Sequence[_Windows]) -> _Windows:
        return cls(*(torch.cat([getattr(p, name) for p in parts]) for name in cls.__dataclass_fields__))

    def at(self, chosen: Tensor) -> _Windows:
        return _Windows(self.slices[chosen], self.places[chosen], self.brain[chosen], self.coverage[chosen])


def _draw_windows(detector: Detector, stack: SliceStack, seed: int, count: int, blobs: int) -> _Windows:
    """Draw windows with brain in them of a stack that is not thick, with up to `blobs` pseudo-anomalies in it."""
    window, cells = detector.config.grid.window, detector.network.cells
    coverage = np.zeros(stack.occupancy.shape, np.float32)
    brain = stack.occupancy >= detector.config.occupancy
    if blobs:
        stack, mask = insert_blobs(stack, seed, blobs)
        step = detector.config.grid.plane // cells
        coverage = mask.reshape(-1, window, cells, step, cells, step).mean((1, 3, 5), dtype=np.float32)
    stack = stack.thickened(detector.config.thick)
    possible = np.flatnonzero(brain.any((1, 2)))
    chosen = np.random.default_rng(seed).permutation(possible)[:count]
    places = (chosen[:, None] + stack.first) * cells**2 + np.arange(cells**2)
    return _Windows(
        torch.from_numpy(stack.by_window[chosen]),
        torch.from_numpy(places),
        torch.from_numpy(brain[chosen].reshape(len(chosen), -1)),
        torch.from_numpy(coverage[chosen].reshape(len(chosen), -1)),
    )


def _read_round(
    detector: Detector, paths: Sequence[Path], options: FitOptions, index: int, generator: torch.Generator
) -> _Windows:
    """Windows of a few volumes, shuffled; the pseudo-anomalies in them are new in every round."""
    volumes = torch.randperm(len(paths), generator=generator)[:VOLUMES_A_ROUND].tolist()
    needed = STEPS_A_ROUND * max(1, SLICES_A_STEP // detector.config.grid.window)
    parts = []
    for place, volume in enumerate(volumes):
        count = needed * (place + 1) // len(volumes) - needed * place // len(volumes)
        seed = (options.seed * 100_003 + index) * VOLUMES_A_ROUND + place
        stack = stack_for(detector.network, read_volume(paths[volume]), thick=False)
        parts.append(_draw_windows(detector, stack, seed, count, options.blobs if options.inserts_blobs else 0))
    windows = _Windows.cat(parts)
    return windows.at(torch.randperm(len(windows.places), generator=generator))


def _step(detector: Detector, windows: _Windows, options: FitOptions, epoch: int, generator: torch.Generator) -> Step:
    """Features of some windows, by the encoder with gradient; cells at a pseudo-anomaly's edge are neither kind."""
    device = detector.network.feature_mean.device
    raw = detector.network(windows.slices.flatten(0, 1)[:, None].to(device)).permute(0, 2, 3, 1).flatten(0, 2)
    places, brain, coverage = windows.places.flatten(), windows.brain.flatten(), windows.coverage.flatten()
    healthy = torch.nonzero(brain & (coverage == 0))[:, 0]
    if not options.inserts_blobs:
        return make_step(detector, raw[healthy.to(device)], places[healthy], None, options, epoch, generator)
    blob = torch.nonzero(brain & (coverage >= 0.5))[:, 0]
    both = torch.cat([healthy, blob])
    return Step(detector.network.whitened(raw[both.to(device)]), places[both].to(device), len(blob))


def tune_together(
    detector: Detector,
    paths: Sequence[Path],
    folder: Path,
    options: FitOptions,
    *,
    ranks: Ranks,
    progress: Callable[[int, float, float, float], None],
) -> None:
    """Train encoder and flow together for `options.tune_encoder` rounds, and write a checkpoint after each.

    A round is 8 steps of 24 slices, drawn from four volumes with new pseudo-anomalies in them (or noise, as
    `options` say). The loss is the one of the epochs before, at the learning rate that the flow had last; the
    encoder's is `options.encoder_learning_rate`. Batch normalisation keeps its statistics, the features
    their whitening. A round draws from numbers of its own, so that a resumed run ends as an uninterrupted one.

    Parameters
    ----------
    detector : trained on its frozen encoder's features; `record["tuning"]` holds the rounds done
    progress : called after each step with the round, the share of it done, the step's loss and mean true log-likelihood
    """
    rounds: list[dict[str, float]] = detector.record.setdefault("tuning", [])
    if len(rounds) >= options.tune_encoder:
        return
    epoch = max(options.epochs, 1)  # pseudo-anomalies take part from epoch 1 on
    network, flow = detector.network, detector.flow
    network.encoder.requires_grad_(True)
    rate = options.learning_rate * options.decay ** ((options.epochs - 1) // options.decay_epochs)
    groups = [
        {"params": [p for p in flow.parameters() if p.requires_grad], "lr": rate},
        {"params": list(network.encoder.parameters()), "lr": options.encoder_learning_rate},
    ]
    optimiser = torch.optim.Adam(groups)
    if rounds:
        restore_optimiser(optimiser, folder / OPTIMISER_FILE, detector.record)
    flow.train()
    try:
        for index in range(len(rounds), options.tune_encoder):
            generator = epoch_generator(options.seed, 10_007 + index)  # other numbers than any epoch's
            windows = _read_round(detector, paths, options, index, generator)
            losses, likelihoods = [], []
            for number, chosen in enumerate(torch.arange(len(windows.places)).tensor_split(STEPS_A_ROUND)):
                if not len(chosen):  # few and short volumes
                    continue
                step = _step(detector, windows.at(chosen), options, epoch, generator)
                optimiser.zero_grad(set_to_none=True)
                loss, likelihood = backward(detector, step, options, epoch, generator, ranks, accumulate=1)
                optimiser.step()
                losses.append(float(loss))
                likelihoods.append(float(likelihood))
                progress(index, (number + 1) / STEPS_A_ROUND, losses[-1], likelihoods[-1])
            rounds.append({"loss": float(np.mean(losses)), "log_likelihood": float(np.mean(likelihoods))})
            save_checkpoint(folder, detector, optimiser_tensors(optimiser))
    finally:
        network.encoder.requires_grad_(False)
        flow.eval()
