"""A trained model as a method to measure: a checkpoint, in torch, or a bundle, in what runs it for its users."""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from ssn.core.atomic import printable
from ssn.core.bundle import CALIBRATION_FILE, MANIFEST_FILE, Bundle, load_bundle
from ssn.core.engine_record import ENGINES_FOLDER
from ssn.core.engine_record import RECORD_FILE as ENGINE_RECORD
from ssn.core.errors import DataError, OutputError
from ssn.core.hashed_files import file_sha256
from ssn.core.outputs import check_folder
from ssn.core.scoring import Calibration
from ssn.core.self_alignment import NOT_WHITENED
from ssn.runtime.backend import DEFAULT_BATCH, Backend
from ssn.runtime.choose import DeviceName, Request, open_backend
from ssn.runtime.pipeline import infer_volume
from ssn.train.calibrate import load_calibration
from ssn.train.cases import Case
from ssn.train.checkpoint import RECORD_FILE, WEIGHTS_FILE, load_checkpoint
from ssn.train.distributed import choose_device
from ssn.train.evaluate import DetectorMethod, ScoredVolume


@runtime_checkable
class TrainedMethod(Protocol):
    """A method that has a threshold of its own.

    Attributes
    ----------
    threshold : of its map, from healthy volumes each of which was left out of what it was compared with, or from
        heads that a model like it has not seen (`ssn.train.unseen`)
    """

    threshold: float

    def __call__(self, path: Path) -> ScoredVolume:
        """Score a volume."""


class BundleMethod:
    """A bundle as a method. It owns the backend, which is closed when nothing uses the method any more."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.threshold = bundle.calibration.threshold
        self._bundle, self._backend = bundle, backend
        weakref.finalize(self, backend.__exit__, None, None, None)

    def __call__(self, path: Path) -> ScoredVolume:
        """Score a volume."""
        batch = self._backend.max_slices or DEFAULT_BATCH
        found = infer_volume(path, self._bundle, self._backend, batch=batch)
        return ScoredVolume.of(found.score_map, found.brain, found.volume)


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds a bundle."""
    return (folder / MANIFEST_FILE).exists()


def calibration_of(folder: Path) -> Calibration:
    """Read the calibration of a checkpoint or a bundle, and refuse a broken one.

    Raises
    ------
    DataError, BundleError
        If it is neither, damaged, or not calibrated.
    """
    if is_bundle(folder):
        return load_bundle(folder).calibration
    load_checkpoint(folder)
    return load_calibration(folder)


def open_trained(folder: Path, device: DeviceName = "auto", *, align: bool | None = None) -> TrainedMethod:
    """Open a checkpoint or a bundle; on a CPU it computes with torch's number of threads.

    `align`: each volume's features by their own (`ssn.core.self_alignment`); None: as the model's threshold is for.

    Raises
    ------
    DataError, BundleError
        As `calibration_of`; if it is to align, and does not whiten its features.
    BackendError
        If the device cannot be had.
    """
    if is_bundle(folder):
        bundle = load_bundle(folder)
        request = Request(device=device, threads=torch.get_num_threads(), align=align)
        return BundleMethod(bundle, open_backend(bundle, request).backend)
    detector, calibration = load_checkpoint(folder).to(choose_device(device)), load_calibration(folder)
    if align is None:
        align = calibration.aligned_to_itself
    if align and detector.network.own_whitening() is None:
        raise DataError(f"{printable(folder)}: {NOT_WHITENED}")
    return DetectorMethod(detector, calibration, _cache_in(folder), align=align)


def _cache_in(folder: Path) -> Path | None:
    """Where a checkpoint's features are kept; nowhere, if the folder cannot be written to."""
    cache = folder / "features"
    try:
        check_folder(cache)
    except OutputError:
        return None
    return cache


def refuse_trained(folder: Path, cases: Sequence[Case]) -> None:
    """Refuse a volume that a checkpoint or a bundle was trained on: its flow knows it, so it is no new healthy one.

    A data set's splits say nothing of that: one subject more moves others to other splits.

    Raises
    ------
    DataError
        If the contents of a case's file were trained on; it is named.
    """
    if is_bundle(folder):
        learned = load_bundle(folder).trained_on
    else:
        learned = json.loads((folder / RECORD_FILE).read_text()).get("made_of", {}).get("volumes", ())
    for case in cases:
        if file_sha256(case.image) in learned:
            raise DataError(
                f"{printable(case.image)}: is in split {case.split!r}, and {printable(folder)} was trained on it; "
                "leave it out of this data set, or train again on its split 'train'"
            )


def model_digests(folder: Path) -> list[str]:
    """Tell a checkpoint or a bundle by digests of what decides what it computes; other files may lie beside it."""
    if is_bundle(folder):  # its engines too: a GPU runs them, and a record has the hashes of their files
        engines = sorted((folder / ENGINES_FOLDER).glob(f"*/{ENGINE_RECORD}"))
        return [load_bundle(folder).digest, *map(file_sha256, engines)]
    return [file_sha256(folder / name) for name in (WEIGHTS_FILE, RECORD_FILE, CALIBRATION_FILE)]
