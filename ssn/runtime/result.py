"""What the detector says of one volume, and how it is put on record."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from ssn import __version__
from ssn.core.bundle import INTENDED_USE, Bundle
from ssn.core.likeness import Likeness
from ssn.core.volume import Volume, from_canonical
from ssn.runtime.align import read_whitening
from ssn.runtime.backend import ALIGNED, Backend, StageTimes

_SAME_LENGTH = 1.5  # voxels of 3 mm where 1 mm is known: three times as much of a healthy brain is above the threshold
_MUCH = 0.15  # of a brain: hardly a lesion takes so much
_FINE = 1.0  # mm; what is finer is averaged to about this before it is seen


@dataclass(frozen=True)
class Result:
    """What the detector says of one volume.

    Attributes
    ----------
    volume : the input
    brain : (X, Y, Z) bool, canonical axis order, as all arrays here
    score_map : (X, Y, Z) float32, z-scores against healthy volumes, 0 outside the brain
    mask : (X, Y, Z) uint8, 1 where the map is above `threshold`
    threshold : float, z
    score : float
        Of the volume: mean of the map's highest millilitre.
    p_value : float
        Share of healthy volumes that score as high (conformal, the volume itself counted in).
    abnormal : bool
        The p-value is 0.05 or less; with fewer than 19 healthy volumes, the score is above all of theirs.
    slice_scores : (Z,) float32, the map's maximum in each axial slice; NaN in a slice without brain
    times : seconds a stage
    likeness : to healthy volumes; None where the bundle does not know what they look like
    straightened : it was turned by its tilt before it was scored, and the map turned back
    brain_doubts : about the brain and where it was placed (`ssn.core.brain_doubts`)
    """

    volume: Volume
    brain: NDArray[np.bool_]
    score_map: NDArray[np.float32]
    mask: NDArray[np.uint8]
    threshold: float
    score: float
    p_value: float
    abnormal: bool
    slice_scores: NDArray[np.float32]
    times: StageTimes
    likeness: Likeness | None = None
    straightened: bool = False
    brain_doubts: Sequence[str] = ()

    @property
    def above_ml(self) -> float:
        """Volume of the mask in ml."""
        return float(self.mask.sum() * self.volume.voxel_ml)

    @property
    def peak(self) -> tuple[int, int, int]:
        """Voxel where the map is highest."""
        x, y, z = np.unravel_index(int(self.score_map.argmax()), self.score_map.shape)
        return int(x), int(y), int(z)


def as_record(result: Result, bundle: Bundle, backend: Backend) -> dict[str, Any]:
    """Everything but the arrays, for JSON. The input's folder is left out: folders can name patients."""
    volume, described = result.volume, backend.describe()
    likeness, healthy = result.likeness, f"the healthy {bundle.spec.modality} volumes"
    return {
        "input": {
            "name": volume.path.name,
            "sha256": volume.sha256,
            "nonfinite_voxels_set_to_background": volume.nonfinite_voxels,
            "doubts": [
                *volume.doubts,
                *contrast_doubts(volume.path.name, bundle.spec.modality),
                *voxel_doubts(max(volume.zooms), bundle.calibration.voxel_mm),
                *(likeness.doubts(healthy, result.straightened) if likeness else ()),
                *result.brain_doubts,
                *alignment_doubts(bundle, aligned=ALIGNED in described),
                *extent_doubts(result, bundle, aligned=ALIGNED in described),
            ],
            "likeness": None if likeness is None or likeness.value is None else round(likeness.value, 4),
            "tilt_degrees": None if likeness is None or likeness.tilt is None else asdict(likeness.tilt),
            "straightened": result.straightened,
        },
        "volume": {
            "score": round(result.score, 4),
            "p_value": round(result.p_value, 4),
            "abnormal": bool(result.abnormal),
            "threshold": round(bundle.calibration.volume_threshold, 4),
            "healthy_volumes": int(bundle.calibration.healthy_scores.size),
        },
        "map": {
            "threshold_z": round(result.threshold, 4),
            "above_threshold_ml": round(result.above_ml, 3),
            "highest_z": round(float(result.score_map.max()), 4),
            "highest_at_mm": [round(v, 1) for v in world_position(volume, result.peak)],
        },
        "slices": [None if np.isnan(z) else round(float(z), 4) for z in result.slice_scores],
        "times_ms": {stage: round(seconds * 1000, 1) for stage, seconds in result.times.seconds.items()},
        "backend": described,
        "bundle": {"name": bundle.spec.name, "modality": bundle.spec.modality, "sha256": bundle.digest},
        "version": __version__,
        "intended_use": INTENDED_USE,
    }


def contrast_doubts(name: str, modality: str, *, or_else: str = "") -> list[str]:
    """Say where a file's name speaks of another contrast than the model's; `or_else`: what else may be done."""
    known = re.findall(r"(?:^|[^a-z0-9])(t1|t2|flair|dwi|adc|bold|swi)w?(?=[^a-z0-9]|$)", name.lower())
    if not known or modality.lower() in known or modality.lower() not in ("t1", "t2", "flair"):
        return []
    return [f"its name says {known[0]}, and the model knows {modality} only; give it {modality} volumes{or_else}"]


def voxel_doubts(longest: float, healthy: float | None) -> list[str]:
    """Say where voxels (mm) are far longer or shorter than the healthy volumes': their threshold is then off."""
    if healthy is None or 1 / _SAME_LENGTH <= max(longest, _FINE) / max(healthy, _FINE) <= _SAME_LENGTH:
        return []
    return [
        f"its voxels are {longest:.3g} mm long, those of the healthy volumes that it is compared with {healthy:.3g} "
        "mm; calibrate on healthy volumes like it (ssn-export calibrate), or do not trust threshold and p-value"
    ]


def alignment_doubts(bundle: Bundle, *, aligned: bool) -> list[str]:
    """Say where a volume was aligned by itself and the healthy ones were not, or the other way round."""
    if aligned == bundle.calibration.aligned_to_itself:
        return []
    how, option = ("aligned by itself", "--align") if aligned else ("not aligned by itself", "--no-align")
    return [
        f"it was {how}, unlike the healthy volumes that it is compared with; leave out {option}, or do not trust "
        "threshold and p-value"
    ]


def extent_doubts(result: Result, bundle: Bundle, *, aligned: bool) -> list[str]:
    """Say where more of a brain is above the model's own threshold than a lesion takes, and what may help."""
    share, calibration = float(result.mask.sum()) / float(result.brain.sum()), bundle.calibration
    if share < _MUCH or result.threshold < calibration.threshold:
        return []
    remedy = "or" if aligned or read_whitening(bundle) is None else "or, if there are none, give --align and"
    return [
        f"{share:.0%} of its brain is above the threshold, of a healthy one {calibration.threshold_rate:.1%}: more "
        "likely another scanner, protocol or skull stripping than a lesion; calibrate on healthy volumes like it "
        f"(ssn-export calibrate), {remedy} do not trust threshold and p-value"
    ]


def world_position(volume: Volume, index: tuple[int, int, int]) -> list[float]:
    """World coordinates (x, y, z) in mm of a voxel in canonical axis order."""
    shape = from_canonical(volume.data, volume).shape
    own = orientations.inv_ornt_aff(volume.orientation, shape) @ [*index, 1]
    mm_per_unit = volume.zooms[int(volume.orientation[0, 0])] / float(np.linalg.norm(volume.affine[:3, 0]))
    return [float(v) * mm_per_unit for v in (volume.affine @ own)[:3]]
