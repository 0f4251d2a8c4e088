"""What a detector says of a volume's features, as they are or aligned by their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ssn.core.alignment import Whitening
from ssn.core.scoring import Calibration
from ssn.core.self_alignment import align_to_itself
from ssn.train.checkpoint import Detector
from ssn.train.features import VolumeFeatures


@torch.inference_mode()
def detector_log_likelihood(
    detector: Detector, found: VolumeFeatures, precision: Literal["fp32", "bf16"] = "fp32"
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Places (L,) and log-likelihood per dimension (L,) of one volume's features, which the detector's encoder made."""
    device = detector.network.feature_mean.device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        values = [
            detector.log_likelihood(features.to(device), places.to(device)).float().cpu()
            for features, places in zip(found.features.split(8192), found.places.split(8192), strict=True)
        ]
    return found.places.numpy(), torch.cat(values).numpy()


def aligned_by_own(
    detector: Detector, found: VolumeFeatures, whitening: Whitening, calibration: Calibration
) -> VolumeFeatures:
    """Align a volume's features as a bundle's runtime does (`ssn.core.self_alignment`), by the detector's whitening."""
    features, places = found.features.numpy().astype(np.float32), found.places.numpy()

    def ask(some: NDArray[np.float32], where: NDArray[np.int64]) -> NDArray[np.float32]:
        given = VolumeFeatures(torch.from_numpy(some), torch.from_numpy(where))
        return detector_log_likelihood(detector, given)[1]

    align_to_itself(features, places, whitening, calibration, ask)
    return replace(found, features=torch.from_numpy(features))
