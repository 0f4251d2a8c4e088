"""What torch itself says: the trained networks, in FP32, on slices of the product's own pipeline."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ssn.core.slices import SliceStack
from ssn.export.parity import Method
from ssn.runtime.backend import DEFAULT_BATCH, Batch, plan_batches
from ssn.train.checkpoint import Detector


@torch.inference_mode()
def torch_log_likelihood(detector: Detector, batch: Batch) -> NDArray[np.float32]:
    """Log-likelihood per dimension (L,) at a batch's places."""
    raw = detector.network(torch.from_numpy(batch.slices)).permute(0, 2, 3, 1).flatten(0, 2)
    places = torch.from_numpy(batch.places)
    return detector.log_likelihood(raw[places - batch.first * detector.network.cells**2], places).numpy()


def torch_method(detector: Detector) -> Method:
    """Make a detector a method of the parity check."""

    def method(stack: SliceStack) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        batches = list(plan_batches(stack, detector.config.occupancy, DEFAULT_BATCH))
        values = [torch_log_likelihood(detector, batch) for batch in batches]
        return np.concatenate([batch.places for batch in batches]), np.concatenate(values)

    return method
