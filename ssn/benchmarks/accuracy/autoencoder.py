"""A 3D autoencoder trained on the healthy volumes; what it can't reconstruct is anomalous."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ssn.benchmarks.baselines import build_baseline, choose_baselines
from ssn.train.distributed import choose_device
from ssn.train.references import Blocks

_NETWORK = "AutoEncoder"  # MONAI's, the one whose speed `ssn-bench latency` measures


@dataclass(frozen=True)
class AutoencoderBudget:
    """A few minutes on one core for 40 volumes of 64 x 64 x 64 blocks of 3 mm."""

    epochs: int = 40
    batch: int = 2
    rate: float = 1e-3
    seed: int = 0


def fit_autoencoder(
    healthy: NDArray[np.float32],
    budget: AutoencoderBudget,
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> Callable[[Blocks], Blocks]:
    """Train on the healthy volumes' blocks (n, X, Y, Z), and return the function from blocks to |x - reconstruction|.

    MONAI's AutoEncoder with channels 16 to 256 and five halvings: 2 x 2 x 2 x 256 numbers stand for a brain. Adam with
    the rate falling along a cosine, mean absolute error. It is trained, and computes, on the GPU, if there is one.

    Raises
    ------
    BackendError
        If MONAI is not installed.
    """
    device = choose_device("auto")
    volumes = torch.from_numpy(healthy)[:, None].to(device)
    (baseline,) = choose_baselines([_NETWORK])
    shape = (volumes.shape[2], volumes.shape[3], volumes.shape[4])
    generator = torch.Generator().manual_seed(budget.seed)
    with torch.random.fork_rng(devices=[]):
        network = build_baseline(baseline, shape).to(device).train()
    optimiser = torch.optim.Adam(network.parameters(), budget.rate)
    steps = budget.epochs * -(-len(volumes) // budget.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    step = 0
    for _ in range(budget.epochs):
        for chosen in torch.randperm(len(volumes), generator=generator).split(budget.batch):
            shown = volumes[chosen.to(device)]
            loss = (network(shown) - shown).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
            progress(step, steps)
    network.eval()

    @torch.inference_mode()
    def residual(blocks: Blocks) -> Blocks:
        volume = torch.from_numpy(np.ascontiguousarray(blocks))[None, None].to(device)
        result: Blocks = (volume - network(volume)).abs()[0, 0].cpu().numpy()
        return result

    return residual
