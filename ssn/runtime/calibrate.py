"""A bundle calibrated anew on a user's own healthy volumes: other statistics; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ssn import __version__
from ssn.core.atomic import printable
from ssn.core.brain_doubts import brain_doubts
from ssn.core.bundle import CARD_FILE, ENCODER_FILE, FLOW_FILE, Bundle, write_bundle
from ssn.core.calibrate import FOLDS, HealthyVolume, calibrate
from ssn.core.engine_record import ENGINES_FOLDER
from ssn.core.errors import SsnError
from ssn.core.likeness import block_edges, unlike_the_rest
from ssn.core.scoring import Calibration
from ssn.runtime.align import Alignment
from ssn.runtime.backend import ALIGNED, DEFAULT_BATCH, Backend, StageTimes, run_batches
from ssn.runtime.healthy import read_healthy, refuse_few
from ssn.runtime.result import contrast_doubts

# What write_bundle writes anew, and what was measured with the calibration that is replaced.
_NOT_CARRIED = ("schema", "model", "intended_use", "files", "accuracy", "calibration")
# Of a bundle that is replaced: what engines had to prove was measured in z, and z changes, the flow's features too.
_OUTDATED = (ENGINES_FOLDER, CARD_FILE)


def of_contrast(bundle: Bundle, modality: str) -> Bundle:
    """Return the bundle as one of a contrast: it does not know how healthy volumes of another look."""
    if modality.lower() == bundle.spec.modality.lower():
        return bundle
    return replace(
        bundle,
        spec=replace(bundle.spec, modality=modality),
        calibration=replace(bundle.calibration, grey=None),
    )


def calibrate_on(
    paths: Sequence[Path],
    bundle: Bundle,
    opened: Callable[[Bundle], Backend],
    *,
    alignment: Alignment | None = None,
    batch: int | None = None,
    refused: Callable[[SsnError], None] = lambda error: None,
    doubted: Callable[[str], None] = lambda line: None,
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[Calibration, dict[str, Any]]:
    """Calibrate a bundle on healthy volumes; its Gaussian and the share above its threshold stay.

    Parameters
    ----------
    opened : opens a backend for a bundle. One that aligns each volume by itself makes a calibration of volumes that
        are; of which places look healthy the bundle's own then tells.
    alignment : of the same volumes. Each goes through the flow under an alignment that has not seen it, as those that
        will be examined do; so there is a backend for each fold.
    batch : slices at once; it bounds memory and does not change the result; None: the backend's own
    refused : gets the error of each volume that is not usable
    doubted : gets a line for each doubt about a volume's header, name and brain, and for each volume that looks unlike
        those that the bundle knows, or else unlike the others here
    progress : gets how many volumes are done, the current one's share included

    Returns
    -------
    calibration, and its record for the manifest: number and hashes of the volumes, date, what was calibrated anew and
    how far its features were aligned before (`ssn.runtime.align`)

    Raises
    ------
    DataError
        If there are too few volumes, or any is not usable (`ssn.runtime.healthy`).
    """
    refuse_few(paths)
    spec, present = bundle.spec, bundle.calibration
    found: dict[Path, tuple[HealthyVolume, str]] = {}

    def advance(share: float) -> None:
        progress(len(found) + share)

    for source, part in _folds(paths, bundle, alignment):
        with opened(source) as backend:
            described = backend.describe()
            slices = batch or backend.max_slices or DEFAULT_BATCH
            for path, volume, look in read_healthy(part, bundle, refused):
                named = contrast_doubts(path.name, spec.modality, or_else=", or say which these are with --modality")
                for doubt in [*volume.doubts, *named, *brain_doubts(volume, look)]:
                    doubted(f"{printable(path)}: {doubt}")
                answer = run_batches(backend, look.stack, spec.occupancy, slices, StageTimes(), advance)
                found[path] = HealthyVolume.of(volume, look, *answer), volume.sha256
                advance(0)
    healthy = [found[path][0] for path in paths]
    for path, doubts in zip(paths, _doubts(healthy, bundle), strict=True):
        for doubt in doubts:
            doubted(f"{printable(path)}: {doubt}")
    calibration = calibrate(
        healthy,
        windows=spec.grid.windows,
        cells=spec.cells,
        sigma=present.sigma,
        rate=present.threshold_rate,
    )
    calibration = replace(calibration, aligned_to_itself=ALIGNED in described)
    record = {
        "volumes": len(healthy),
        "date": datetime.now(UTC).date().isoformat(),
        "backend": described,
        "version": __version__,
        "aligned": alignment.share if alignment else 0.0,
        "of_bundle": {"name": spec.name, "sha256": bundle.digest},
        "volume_sha256": [found[path][1] for path in paths],
    }
    return calibration, record


def _folds(
    paths: Sequence[Path], bundle: Bundle, alignment: Alignment | None
) -> Iterator[tuple[Bundle, Sequence[Path]]]:
    """Yield which volumes go through which bundle: all of them through it, or each fold through one aligned without."""
    if alignment is None:
        yield bundle, paths
        return
    for fold in range(FOLDS):
        part = slice(fold, None, FOLDS)
        yield alignment.aligned(left_out=part), paths[part]


def _doubts(healthy: Sequence[HealthyVolume], bundle: Bundle) -> list[list[str]]:
    """Doubts about each volume by what it looks like: against what the bundle knows, or else against the rest."""
    spec = bundle.spec
    if bundle.calibration.grey is None:
        looks = [one.grey for one in healthy if one.grey is not None]
        return unlike_the_rest(looks, block_edges(spec.grid, spec.cells), "the other volumes")
    others = f"the healthy {spec.modality} volumes"
    looked = [(one.look.likeness, one.look.turn is not None) for one in healthy]
    return [likeness.doubts(others, straightened) if likeness else [] for likeness, straightened in looked]


def write_calibrated(
    folder: Path,
    bundle: Bundle,
    calibration: Calibration,
    record: dict[str, Any],
    *,
    name: str,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle with another one's graphs, aligned or not, and a calibration of its own.

    The accuracy on record is left out, because it was measured with the calibration that this one replaces; engines and
    model card of a bundle that is replaced go for the same reason.

    Raises
    ------
    BundleError
        If a graph was modified since it was written.
    OutputError
        If `folder` exists and is not to be overwritten, is not a bundle, or can't be written.
    """
    graphs = {file: bundle.read(file) for file in (ENCODER_FILE, FLOW_FILE)}
    about = {key: value for key, value in bundle.manifest.items() if key not in _NOT_CARRIED}
    spec = replace(bundle.spec, name=name)
    about["calibration"] = record
    return write_bundle(folder, spec, graphs, calibration, about, overwrite=overwrite, outdated=_OUTDATED)
