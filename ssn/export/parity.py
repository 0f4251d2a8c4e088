"""Whether two ways to compute a bundle agree: on the log-likelihood, on the map, and on what is read off it.

Everything goes the product's own way: volume, slices, batches, `anomaly_map`. Only that a volume's features are not
aligned by their own: the host computes that whatever the way, and a place that rounding moves across the line to those
without a say would move all the others. What is allowed depends on the precision alone, and is stated here with its
reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssn.core.bundle import Bundle
from ssn.core.errors import DataError
from ssn.core.metrics import voxel_auroc
from ssn.core.scoring import anomaly_map
from ssn.core.slices import SliceStack
from ssn.core.volume import Volume, read_volume
from ssn.runtime.backend import DEFAULT_BATCH, Backend, StageTimes, run_batches
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.result import world_position
from ssn.train.masks import unusable_mask

# Places (L,) of a stack and their log-likelihood per dimension (L,).
Method = Callable[[SliceStack], tuple[NDArray[np.int64], NDArray[np.float32]]]
DECIDED_Z = 10.0  # where a map is so high, no threshold is near: there it's the share of z that counts
_GATED_MASK_ML = 1.0  # a mask smaller than this changes by a large share when one voxel does


@dataclass(frozen=True)
class Tolerance:
    """What a precision may change.

    Attributes
    ----------
    log_likelihood : largest change at any place, per dimension
    map_z : largest change of the map at any voxel, in z up to `DECIDED_Z` and relative to z beyond
    dice : least Dice coefficient of the masks, all volumes taken together
    auroc : largest change of a volume's voxel AUROC
    """

    log_likelihood: float
    map_z: float
    dice: float
    auroc: float


TOLERANCES: Mapping[Literal["fp32", "fp16", "int8"], Tolerance] = {
    # Another order of summation, nothing more: the same bound as between torch and ONNX at export.
    "fp32": Tolerance(log_likelihood=1e-3, map_z=0.02, dice=0.99, auroc=0.001),
    # The healthy map's standard deviation is 1, and a fifth of it moves no finding. A place alone may change more
    # than the map, which is a mean over some twenty of them.
    "fp16": Tolerance(log_likelihood=0.2, map_z=0.2, dice=0.98, auroc=0.002),
    # One healthy standard deviation at the worst voxel: a threshold of 5 to 7 still separates what it separated.
    "int8": Tolerance(log_likelihood=1.0, map_z=1.0, dice=0.9, auroc=0.01),
}


def tightened(tolerance: Tolerance, share: float) -> Tolerance:
    """Allow only a share (0 to 1) of a tolerance."""
    return Tolerance(
        log_likelihood=share * tolerance.log_likelihood,
        map_z=share * tolerance.map_z,
        dice=1 - share * (1 - tolerance.dice),
        auroc=share * tolerance.auroc,
    )


@dataclass(frozen=True)
class Sample:
    """A volume that is ready to be computed.

    Attributes
    ----------
    lesion : (X, Y, Z) bool, canonical axis order, or None
    voxel_ml : volume of a voxel, ml
    """

    name: str
    sha256: str
    stack: SliceStack
    voxel_ml: float
    lesion: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Answer:
    """What a method says of a sample: log-likelihood (L,) at places (L,), and map (X, Y, Z)."""

    places: NDArray[np.int64]
    log_likelihood: NDArray[np.float32]
    score_map: NDArray[np.float32]


@dataclass(frozen=True)
class Drift:
    """How far one method's answers are from another's, over all samples; see `Tolerance`.

    Attributes
    ----------
    correlation : of the log-likelihoods, over all places
    dice : None where the masks are too small to be compared
    auroc : None where no sample has a lesion mask
    """

    log_likelihood: float
    log_likelihood_mean: float
    correlation: float
    map_z: float
    dice: float | None
    auroc: float | None


def prepare(bundle: Bundle, path: Path, mask: Path | None = None) -> Sample:
    """Read a volume, and its lesion mask if there is one.

    Raises
    ------
    VolumeError
        If one of them cannot be read.
    DataError
        If the mask has another shape or lies elsewhere, or marks nothing of the brain or all of it.
    """
    volume, spec = read_volume(path), bundle.spec
    stack = spec.cut(volume)
    lesion = None
    if mask is not None:
        marked = read_volume(mask)
        lesion = marked.data > 0
        if lesion.shape != volume.data.shape:
            raise DataError(f"{mask}: has shape {lesion.shape} and {path} has {volume.data.shape}; give its own mask")
        if not _lie_together(marked, volume):
            raise DataError(f"{mask}: lies elsewhere than {path} (affines differ); give its own mask")
        if wrong := unusable_mask(mask, lesion[stack.brain]):
            raise DataError(wrong)
    return Sample(path.name, volume.sha256, stack, volume.voxel_ml, lesion)


def _lie_together(one: Volume, other: Volume) -> bool:
    """Whether two volumes of one shape (in canonical axis order) have their corners at the same places."""
    corners = list(product(*((0, size - 1) for size in one.data.shape)))
    first, second = (np.array([world_position(volume, corner) for corner in corners]) for volume in (one, other))
    return bool(np.abs(first - second).max() <= 0.5 * min(other.zooms))


def method_of(bundle: Bundle, backend: Backend) -> Method:
    """Make an open backend a method."""
    return lambda stack: run_batches(backend, stack, bundle.spec.occupancy, DEFAULT_BATCH, StageTimes())


def answers(bundle: Bundle, samples: Sequence[Sample], method: Method) -> list[Answer]:
    """Run a method on every sample."""
    found = []
    for sample in samples:
        places, values = method(sample.stack)
        # A precision that overflows gives infinities; they are the finding here, not a mistake.
        with np.errstate(invalid="ignore", over="ignore"):
            found.append(Answer(places, values, anomaly_map(values, places, sample.stack, bundle.calibration)))
    return found


def answers_on_cpu(bundle: Bundle, samples: Sequence[Sample]) -> list[Answer]:
    """Run a bundle on every sample with ONNX Runtime on the CPU: in FP32 it is what all else is compared with."""
    with OnnxRuntimeBackend(bundle) as backend:
        return answers(bundle, samples, method_of(bundle, backend))


def measure(bundle: Bundle, samples: Sequence[Sample], reference: Sequence[Answer], given: Sequence[Answer]) -> Drift:
    """Compare answers with the reference's."""
    expected, found = (np.concatenate([answer.log_likelihood for answer in part]) for part in (reference, given))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(found.astype(np.float64) - expected)
        correlation = np.corrcoef(expected, found)[0, 1]
        # Not Python's max, which passes over NaN.
        map_z = float(np.max([_map_change(a.score_map, b.score_map) for a, b in zip(reference, given, strict=True)]))
    return Drift(
        log_likelihood=float(error.max()),
        log_likelihood_mean=float(error.mean()),
        correlation=float(correlation),
        map_z=map_z,
        dice=_pooled_dice(bundle, samples, reference, given),
        auroc=_auroc_change(samples, reference, given),
    )


def _map_change(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Largest change of a map at any voxel, as `Tolerance.map_z` counts it."""
    return float((np.abs(found - expected) / np.maximum(np.abs(expected) / DECIDED_Z, 1)).max())


def _pooled_dice(
    bundle: Bundle, samples: Sequence[Sample], reference: Sequence[Answer], given: Sequence[Answer]
) -> float | None:
    level = bundle.calibration.threshold
    both = total = expected_ml = 0.0
    for sample, a, b in zip(samples, reference, given, strict=True):
        expected, found = a.score_map > level, b.score_map > level
        expected_ml += float(expected.sum()) * sample.voxel_ml
        both += float((expected & found).sum())
        total += float(expected.sum() + found.sum())
    return 2 * both / total if expected_ml >= _GATED_MASK_ML else None


def _auroc_change(samples: Sequence[Sample], reference: Sequence[Answer], given: Sequence[Answer]) -> float | None:
    changes = []
    for sample, *pair in zip(samples, reference, given, strict=True):
        if sample.lesion is None:
            continue
        if not np.isfinite(pair[1].score_map).all():
            return float("nan")
        a, b = (voxel_auroc(answer.score_map, sample.lesion, sample.stack.brain) for answer in pair)
        changes.append(abs(a - b))
    return max(changes, default=None)


def excesses(drift: Drift, tolerance: Tolerance) -> list[str]:
    """Say in words what is beyond the tolerance; an empty list: nothing is."""
    # Asked as "not within", so that NaN is beyond everything.
    found = []
    if not drift.log_likelihood <= tolerance.log_likelihood:
        found.append(f"log-likelihood off by {drift.log_likelihood:.2g} (at most {tolerance.log_likelihood:g})")
    if not drift.map_z <= tolerance.map_z:
        found.append(f"map off by {drift.map_z:.2g} z (at most {tolerance.map_z:g})")
    if drift.dice is not None and not drift.dice >= tolerance.dice:
        found.append(f"Dice of the masks {drift.dice:.3f} (at least {tolerance.dice:g})")
    if drift.auroc is not None and not drift.auroc <= tolerance.auroc:
        found.append(f"AUROC off by {drift.auroc:.2g} (at most {tolerance.auroc:g})")
    return found


def excerpt(samples: Sequence[Sample], reference: Sequence[Answer], given: Sequence[Answer], windows: int) -> Sample:
    """Cut out the windows around the place where answers differ most: a search asks them many times over."""
    with np.errstate(invalid="ignore"):
        errors = [
            np.nan_to_num(np.abs(b.log_likelihood - a.log_likelihood), nan=np.inf)
            for a, b in zip(reference, given, strict=True)
        ]
    worst = int(np.argmax([error.max() for error in errors]))
    sample, stack = samples[worst], samples[worst].stack
    cells = stack.occupancy[0].size
    at = int(reference[worst].places[errors[worst].argmax()]) // cells - stack.first
    start = min(max(at - windows // 2, 0), max(len(stack.occupancy) - windows, 0))
    return replace(sample, stack=stack.part(start, start + windows), lesion=None)


def as_record(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Name what was measured on, for a record; folders are left out, because they can name patients."""
    return [{"name": sample.name, "sha256": sample.sha256} for sample in samples]
