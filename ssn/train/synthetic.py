"""The synthetic cohort: subjects with and without lesions, written as NIfTI with exact masks and a CSV."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, cast

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray

from ssn.core.atomic import atomic_path, printable
from ssn.core.errors import DataError, OutputError
from ssn.core.outputs import make_folder
from ssn.train.anatomy import Contrast
from ssn.train.cases import HEALTHY_SPLITS
from ssn.train.layouts import COHORT_FILE
from ssn.train.lesions import LESION_KINDS, LesionKind
from ssn.train.person import Person
from ssn.train.subject import make_subject, thicken
from ssn.train.templates import TemplateName, load_template
from ssn.train.workers import worker_processes

SEEDS = 1_000_000  # of subjects that a cohort's seed leaves room for


@dataclass(frozen=True)
class SubjectRecord:
    """One row of `cohort.csv`.

    Attributes
    ----------
    image, mask : relative to the cohort's folder; no mask, "", of a healthy subject
    template : or name and digest of the scan that it was made from
    slice_mm : thickness of the axial slices, in whole mm
    tilt_degrees : rotation of the head in its grid, about an axis of its own, besides that which every subject has
    """

    image: str
    mask: str
    split: str
    lesion: LesionKind | Literal[""]
    volume_ml: float
    contrast: Contrast
    template: str
    seed: int
    slice_mm: int = 1
    tilt_degrees: int = 0


def _write(path: Path, data: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, overwrite=True) as temporary:
        nib.save(image, temporary)


def plan_cohort(
    sizes: dict[str, int],
    contrast: Contrast,
    template: str,
    seed: int,
    slice_mm: int = 1,
    tilt_degrees: int = 0,
) -> list[SubjectRecord]:
    """List a cohort's subjects.

    `sizes` gives the number of subjects of each split. `train` and `calibration` are healthy; of every
    other split, one subject in five is healthy and the kinds of lesion take turns among the rest.
    No seed occurs twice, so no subject is in two splits.

    Raises
    ------
    DataError
        If no subject is wanted.
    """
    if not any(sizes.values()):
        raise DataError("a cohort of no subjects was asked for; give some")
    records: list[SubjectRecord] = []
    for split, size in sizes.items():
        for index in range(size):
            turn = index % (len(LESION_KINDS) + 1)
            healthy = split in HEALTHY_SPLITS or turn == len(LESION_KINDS)
            lesion: LesionKind | Literal[""] = "" if healthy else LESION_KINDS[turn]
            number = len(records)
            name = f"{template}-{contrast}-{split}-{index:04d}.nii.gz"
            mask = f"masks/{name}" if lesion else ""
            own = seed * SEEDS + number
            records.append(
                SubjectRecord(
                    f"images/{name}", mask, split, lesion, 0.0, contrast, template, own, slice_mm, tilt_degrees
                )
            )
    return records


_template = lru_cache(maxsize=1)(load_template)
_person = lru_cache(maxsize=1)(Person.read)


def _make_and_write(record: SubjectRecord, folder: Path, scan: Path | None) -> SubjectRecord:
    torch.set_num_threads(1)  # one process a core already
    path = folder / record.image
    lesion, tilt = record.lesion or None, record.tilt_degrees
    if scan:
        try:
            subject = _person(scan).subject(record.seed, lesion=lesion, tilt_degrees=tilt)
        except DataError as error:
            raise DataError(f"{printable(scan)}: {error}") from error
    else:
        template = _template(cast(TemplateName, record.template))
        subject = make_subject(template, record.seed, contrast=record.contrast, lesion=lesion, tilt_degrees=tilt)
    if record.slice_mm > 1:
        subject = thicken(subject, record.slice_mm)
    # 12 bits, as scanners write: small files whose rounding is far below the noise.
    _write(path, np.rint(subject.image.clip(0, 2) * 2000).astype(np.int16), subject.affine)
    if record.mask:
        _write(folder / record.mask, subject.mask.astype(np.uint8), subject.affine)
    voxel_ml = abs(float(np.linalg.det(subject.affine[:3, :3]))) / 1000
    return replace(record, volume_ml=round(float(subject.mask.sum()) * voxel_ml, 3))


def write_cohort(
    folder: Path,
    records: list[SubjectRecord],
    *,
    scan: Path | None = None,
    workers: int = 1,
    doubted: Callable[[str], None] = lambda line: None,
    progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Make every subject that is not there yet and write `cohort.csv`; returns its path.

    A subject that stands in an older `cohort.csv` is kept, so an interrupted run goes on where it stopped.

    Parameters
    ----------
    scan : of a healthy head, T1-weighted, that all are made from (`ssn.train.person`) and not from a template
    doubted : gets a line for each doubt about the scan, which all subjects inherit
    progress : gets the number of subjects done

    Raises
    ------
    DataError, VolumeError
        If the scan is no usable brain, or of another contrast than the subjects are to have, or has no place for a
        lesion.
    OutputError
        Before anything is written, if `cohort.csv` has a subject that is not among `records`, or the folder can't be
        written to.
    """
    table = folder / COHORT_FILE
    there = read_cohort(table) if table.exists() else []
    if scan:
        for doubt in _person(scan).doubts:
            doubted(f"{printable(scan)}: {doubt}")
        told = _person(scan).contents[:12]  # by its name alone, one brain.nii.gz would be taken for another
        records = [replace(record, template=f"{record.template}@{told}") for record in records]
        if other := next((record.contrast for record in records if record.contrast != "t1"), None):
            raise DataError(f"{printable(scan)}: is taken to be T1-weighted, not {other}; leave out --contrast")
    _refuse_others(table, there, records)
    make_folder(folder)
    known = {record.seed: record for record in there}
    done = []
    missing = []
    for record in records:
        old = known.get(record.seed)
        if (
            old is not None
            and replace(old, volume_ml=0.0) == record
            and all(file.exists() for file in _files(folder, old))
        ):
            done.append(old)
        else:
            missing.append(record)
    with worker_processes(workers) as pool:
        for made in pool.map(_make_and_write, missing, repeat(folder), repeat(scan)):
            done.append(made)
            progress(len(done))
            if len(done) % 10 == 0 or len(done) == len(records):
                _write_table(table, sorted(done, key=lambda record: record.seed))
    return table


def _files(folder: Path, record: SubjectRecord) -> list[Path]:
    return [folder / name for name in (record.image, record.mask) if name]


def _refuse_others(table: Path, there: list[SubjectRecord], records: list[SubjectRecord]) -> None:
    """Raise OutputError if a cohort holds subjects that are not planned: their rows and files would be replaced."""
    planned = set(records)
    other = next((old for old in there if replace(old, volume_ml=0.0) not in planned), None)
    if other is not None:
        sizes = ", ".join(f"{size} {split}" for split, size in Counter(record.split for record in there).items())
        raise OutputError(
            f"{table}: is of another cohort (seed {other.seed // SEEDS}, {other.contrast}, {other.template}, "
            f"slices of {other.slice_mm} mm, tilted by {other.tilt_degrees} degrees; {sizes}); use another folder, or "
            "the same options"
        )


def _write_table(path: Path, records: list[SubjectRecord]) -> None:
    names = [field.name for field in fields(SubjectRecord)]
    with atomic_path(path, overwrite=True) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)


def read_cohort(path: Path) -> list[SubjectRecord]:
    """Read `cohort.csv`.

    Raises
    ------
    DataError
        If the file is missing or its columns are others.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return [_record(row) for row in csv.DictReader(stream)]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Make it with ssn-train synth.") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        columns = ",".join(field.name for field in fields(SubjectRecord))
        raise DataError(f"{path}: is not a cohort table; its columns must be {columns}.") from error


def _record(row: dict[str, Any]) -> SubjectRecord:
    numbers = {
        "volume_ml": float(row["volume_ml"]),
        "seed": int(row["seed"]),
        "slice_mm": int(row.get("slice_mm", 1)),
        "tilt_degrees": int(row.get("tilt_degrees", 0)),
    }
    return SubjectRecord(**{**row, **numbers})
