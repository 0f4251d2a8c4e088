"""A bundle calibrated anew on a user's own healthy volumes: same graphs, other statistics; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ssn import __version__
from ssn.core.atomic import printable
from ssn.core.brain_doubts import brain_doubts
from ssn.core.bundle import CARD_FILE, ENCODER_FILE, FLOW_FILE, Bundle, write_bundle
from ssn.core.calibrate import HealthyVolume, calibrate
from ssn.core.engine_record import ENGINES_FOLDER
from ssn.core.errors import DataError, SsnError, VolumeError
from ssn.core.likeness import block_edges, unlike_the_rest
from ssn.core.look import look_at
from ssn.core.scoring import Calibration
from ssn.core.volume import Volume, read_volume
from ssn.runtime.backend import DEFAULT_BATCH, Backend, StageTimes, run_batches

FEWEST = 5  # healthy volumes: each is compared with four others at least
# What write_bundle writes anew, and what was measured with the calibration that is replaced.
_NOT_CARRIED = ("schema", "model", "intended_use", "files", "accuracy", "calibration")
# Of a bundle that is replaced: what engines had to prove was measured in z, and z is what changes.
_OUTDATED = (ENGINES_FOLDER, CARD_FILE)


def calibrate_on(
    paths: Sequence[Path],
    bundle: Bundle,
    backend: Backend,
    *,
    batch: int = DEFAULT_BATCH,
    refused: Callable[[SsnError], None] = lambda error: None,
    doubted: Callable[[str], None] = lambda line: None,
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[Calibration, dict[str, Any]]:
    """Calibrate a bundle on healthy volumes; its Gaussian and the share above its threshold stay.

    Parameters
    ----------
    batch : slices at once; it bounds memory and does not change the result
    refused : gets the error of each volume that is not usable
    doubted : gets a line for each doubt about a volume's brain, and for each volume that looks unlike those that the
        bundle knows, or else unlike the others here
    progress : gets how many volumes are done, the current one's share included

    Returns
    -------
    calibration, and its record for the manifest: number and hashes of the volumes, date, what was calibrated anew

    Raises
    ------
    DataError
        If there are fewer than `FEWEST` volumes, or any is not usable, there twice or one that was trained on.
    """
    if len(paths) < FEWEST:
        raise DataError(f"{len(paths)} healthy volumes are too few to calibrate on; give at least {FEWEST}, better 20")
    spec, present = bundle.spec, bundle.calibration
    healthy: list[HealthyVolume] = []
    seen: dict[str, Path] = {}
    files: list[str] = []
    done = 0

    def advance(share: float) -> None:
        progress(done + share)

    for path, volume in zip(paths, _read_ahead(paths), strict=True):
        try:
            if isinstance(volume, SsnError):
                raise volume
            voxels = volume.contents()
            if voxels in seen:
                raise VolumeError(f"{printable(path)}: is the same image as {printable(seen[voxels])}")
            seen[voxels] = path
            if volume.sha256 in bundle.trained_on:
                raise VolumeError(f"{printable(path)}: {printable(spec.name)} was trained on it; leave it out")
            files.append(volume.sha256)
            look = look_at(volume, spec.cut, present)
            for doubt in brain_doubts(volume, look):
                doubted(f"{printable(path)}: {doubt}")
            found = run_batches(backend, look.stack, spec.occupancy, batch, StageTimes(), advance)
            healthy.append(HealthyVolume.of(volume, look, *found))
        except VolumeError as error:  # the others are looked at too, so that one run names all that are bad
            refused(error)
        done += 1
        progress(done)
    if len(healthy) < len(paths):
        raise DataError(
            f"{len(paths) - len(healthy)} of {len(paths)} volumes are not usable, so nothing is calibrated; "
            "leave them out or mend them"
        )
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
    record = {
        "volumes": len(healthy),
        "date": datetime.now(UTC).date().isoformat(),
        "backend": backend.describe(),
        "version": __version__,
        "of_bundle": {"name": spec.name, "sha256": bundle.digest},
        "volume_sha256": files,
    }
    return calibration, record


def _doubts(healthy: Sequence[HealthyVolume], bundle: Bundle) -> list[list[str]]:
    """Doubts about each volume by what it looks like: against what the bundle knows, or else against the rest."""
    spec = bundle.spec
    if bundle.calibration.grey is None:
        looks = [one.grey for one in healthy if one.grey is not None]
        return unlike_the_rest(looks, block_edges(spec.grid, spec.cells), "the other volumes")
    others = f"the healthy {spec.modality} volumes"
    looked = [(one.look.likeness, one.look.turn is not None) for one in healthy]
    return [likeness.doubts(others, straightened) if likeness else [] for likeness, straightened in looked]


def _read_ahead(paths: Sequence[Path]) -> Iterator[Volume | SsnError]:
    """Yield each volume while the next is being read; two are in memory at most."""

    def read(path: Path) -> Volume | SsnError:
        try:
            return read_volume(path)
        except SsnError as error:
            return error

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, paths[0])
        for index in range(len(paths)):
            volume = coming.result()
            if index + 1 < len(paths):
                coming = reader.submit(read, paths[index + 1])
            yield volume


def write_calibrated(
    folder: Path,
    bundle: Bundle,
    calibration: Calibration,
    record: dict[str, Any],
    *,
    name: str,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle with another one's graphs and a calibration of its own.

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
