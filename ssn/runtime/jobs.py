"""Which volumes are computed, how their outputs are named, and how each ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssn.core.atomic import printable
from ssn.core.errors import OutputError, VolumeError

OWN_OUTPUTS = ("_anomaly", "_mask")  # ends of the names of map and mask


@dataclass(frozen=True)
class Job:
    """An input and the name its outputs begin with."""

    path: Path
    name: str


@dataclass(frozen=True)
class Outcome:
    """A finished volume: its JSON record, or the error that ended it.

    Attributes
    ----------
    ended : `time.perf_counter()` when it and all before it were on disk, or had failed
    seconds : from the end of the volume before, or from the beginning, to the end of this one: volumes overlap, so the
        sum of a volume's stages is longer
    """

    job: Job
    record: dict[str, Any] | None
    error: str | None
    ended: float
    seconds: float


def is_nifti(path: Path) -> bool:
    """Whether a name is that of a NIfTI volume; hidden files, as some systems leave behind, are not."""
    return path.name.lower().endswith((".nii", ".nii.gz")) and not path.name.startswith(".")


def volume_stem(path: Path) -> str:
    """File name without `.nii` or `.nii.gz`."""
    return re.sub(r"\.nii(\.gz)?\Z", "", path.name, flags=re.ASCII | re.IGNORECASE)


def is_folder(path: Path) -> bool:
    """Whether it is a folder; one that may not be looked at is none, which is said when its turn comes."""
    try:
        return path.is_dir()
    except OSError:
        return False


def find_volumes(inputs: Sequence[Path]) -> list[Path]:
    """List the volumes among files and folders; of folders, the NIfTI files in them that aren't our own outputs.

    Raises
    ------
    VolumeError
        If a folder holds no volume, or may not be looked into.
    """
    paths: list[Path] = []
    for given in inputs:
        if not is_folder(given):
            paths.append(given)
            continue
        found = sorted(
            path for path in _listed(given) if is_nifti(path) and not volume_stem(path).endswith(OWN_OUTPUTS)
        )
        if not found:
            raise VolumeError(
                f"{printable(given)}: holds no .nii or .nii.gz file, and folders in it are not searched; give those "
                "that hold volumes, or the files (DICOM: convert with dcm2niix first)"
            )
        paths.extend(found)
    return paths


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        what = f"cannot be looked into ({error.strerror}); check its permissions"
        raise VolumeError(f"{printable(folder)}: {what}") from error


def _same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # one is not there, which is said when its turn comes
        return path == other


def find_jobs(inputs: Sequence[Path]) -> list[Job]:
    """List the volumes among files and folders, and how their outputs are named.

    Raises
    ------
    VolumeError
        If a folder holds no volume.
    OutputError
        If two inputs would have the same outputs.
    """
    jobs: dict[str, Job] = {}
    for path in find_volumes(inputs):
        job = Job(path, volume_stem(path))
        if job.name in jobs and _same(path, jobs[job.name].path):
            continue
        if job.name in jobs:
            other = printable(jobs[job.name].path)
            raise OutputError(
                f"{printable(path)}: its outputs would have the same names as those of {other}; "
                "leave one out, or run them into different output folders"
            )
        jobs[job.name] = job
    return list(jobs.values())
