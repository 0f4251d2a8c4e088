"""What torch itself says: the trained networks, in FP32, on slices of the product's own pipeline."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ssn.core.slices import SliceStack
from ssn.export.parity import Method
from ssn.runtime.backend import DEFAULT_BATCH, plan_batches
from ssn.train.checkpoint import Detector


@torch.inference_mode()
def torch_log_likelihood(
    detector: Detector, slices: NDArray[np.float32], places: NDArray[np.int64], first: int
) -> NDArray[np.float32]:
    """Log-likelihood per dimension (L,) at places (L,) of slices (N, 1, H, W), whose first window is `first`."""
    raw = detector.network(torch.from_numpy(slices)).permute(0, 2, 3, 1).flatten(0, 2)
    wanted = torch.from_numpy(places)
    values: NDArray[np.float32] = detector.log_likelihood(
        raw[wanted - first * detector.network.cells**2], wanted
    ).numpy()
    return values


def torch_method(detector: Detector) -> Method:
    """Make a detector a method of the parity check."""

    def method(stack: SliceStack) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        batches = list(plan_batches(stack, detector.config.occupancy, DEFAULT_BATCH))
        values = [torch_log_likelihood(detector, batch.slices, batch.places, batch.first) for batch in batches]
        return np.concatenate([batch.places for batch in batches]), np.concatenate(values)

    return method
