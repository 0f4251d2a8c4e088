"""Many volumes: finding them, running them with reading and writing overlapped, and the table of their scores."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssn.core.atomic import atomic_path
from ssn.core.bundle import Bundle
from ssn.core.errors import OutputError, SsnError, VolumeError
from ssn.core.volume import Volume, read_volume
from ssn.runtime.backend import Backend
from ssn.runtime.pipeline import infer_volume, output_paths, refuse_existing, write_outputs
from ssn.runtime.result import Result

TABLE_FILE = "scores.csv"
_SUFFIXES = (".nii.gz", ".nii")
_OWN_OUTPUTS = ("_anomaly", "_mask")
_COLUMNS = ("file", "score", "p_value", "abnormal", "above_threshold_ml", "highest_z", "seconds", "error")


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
    ended : `time.perf_counter()` when it was on disk, or had failed
    seconds : from the end of the volume before, or from the beginning, to the end of this one: stages of consecutive
        volumes overlap, so the sum of a volume's stages is longer
    """

    job: Job
    record: dict[str, Any] | None
    error: str | None
    ended: float
    seconds: float


@dataclass
class _Ended:
    """A volume that was computed and is being written, or that failed.

    Attributes
    ----------
    written : its record, and when it was on disk
    at : when it failed
    """

    job: Job
    result: Result | None = None
    written: Future[tuple[dict[str, Any], float]] | None = None
    error: str | None = None
    at: float = 0.0

    def outcome(self, before: float) -> Outcome:
        """Wait until it is on disk; `before` is when the volume before it ended."""
        record, error, ended = None, self.error, self.at
        if self.written is not None:
            try:
                record, ended = self.written.result()
            except SsnError as refused:
                error, ended = str(refused), time.perf_counter()
        ended = max(ended, before)  # a volume that cannot be read fails while the one before is being written
        return Outcome(self.job, record, error, ended, ended - before)


def _stem(path: Path) -> str:
    for suffix in _SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def find_volumes(inputs: Sequence[Path]) -> list[Path]:
    """List the volumes among files and folders; of folders, the NIfTI files in them that aren't our own outputs.

    Raises
    ------
    VolumeError
        If a folder holds no volume.
    """
    paths: list[Path] = []
    for given in inputs:
        if not given.is_dir():
            paths.append(given)
            continue
        found = sorted(
            path
            for path in given.iterdir()
            if path.name.lower().endswith(_SUFFIXES)
            and not path.name.startswith(".")
            and not _stem(path).endswith(_OWN_OUTPUTS)
        )
        if not found:
            raise VolumeError(f"{given}: holds no .nii or .nii.gz file")
        paths.extend(found)
    return paths


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
        job = Job(path, _stem(path))
        if job.name in jobs:
            raise OutputError(
                f"{path}: its outputs would have the same names as those of {jobs[job.name].path}; "
                "run them into different output folders"
            )
        jobs[job.name] = job
    return list(jobs.values())


def read_ahead(paths: Sequence[Path]) -> Iterator[tuple[Volume | SsnError, float]]:
    """Yield each volume, and the seconds it took, while the next is being read; two are in memory at most."""

    def read(path: Path) -> tuple[Volume | SsnError, float]:
        start = time.perf_counter()
        try:
            return read_volume(path), time.perf_counter() - start
        except SsnError as error:
            return error, 0.0

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, paths[0])
        for index in range(len(paths)):
            volume, seconds = coming.result()
            if index + 1 < len(paths):
                coming = reader.submit(read, paths[index + 1])
            yield volume, seconds


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    bundle: Bundle,
    backend: Backend,
    *,
    threshold: float | None,
    batch: int,
    picture: bool,
    overwrite: bool,
    started: Callable[[Job], None] = lambda job: None,
    progress: Callable[[float], None] = lambda share: None,
    finished: Callable[[Outcome, Result | None], None] = lambda outcome, result: None,
) -> list[Outcome]:
    """Run every job; a bad volume is recorded and the others go on.

    While one volume computes, the next is read and the one before is written. Three are in memory at most, however many
    there are: a result waits for the one before it to be on disk. Outcomes come in the jobs' order, in this thread.

    Raises
    ------
    OutputError
        Before any computing, if an output exists and is not to be overwritten.
    """
    if not overwrite:
        for job in jobs:
            refuse_existing(output_paths(folder, job.name, picture=picture))
        if len(jobs) > 1:
            refuse_existing([folder / TABLE_FILE])
    outcomes: list[Outcome] = []
    start = time.perf_counter()

    def write(result: Result, name: str) -> tuple[dict[str, Any], float]:
        record = write_outputs(result, bundle, backend, folder, name, picture=picture, overwrite=overwrite)
        return record, time.perf_counter()

    def settle(ended: _Ended | None) -> None:
        if ended is not None:
            outcome = ended.outcome(outcomes[-1].ended if outcomes else start)
            outcomes.append(outcome)
            finished(outcome, ended.result)

    with ThreadPoolExecutor(1) as writer:
        before: _Ended | None = None
        for job, (volume, seconds) in zip(jobs, read_ahead([job.path for job in jobs]), strict=True):
            started(job)
            ended = _Ended(job)
            try:
                if isinstance(volume, SsnError):
                    raise volume
                ended.result = infer_volume(
                    volume, bundle, backend, threshold=threshold, batch=batch, progress=progress
                )
                ended.result.times.add("read", seconds)
            except SsnError as error:
                ended.error, ended.at = str(error), time.perf_counter()
            settle(before)
            if ended.result is not None:
                ended.written = writer.submit(write, ended.result, job.name)
            before = ended
        settle(before)
    if len(jobs) > 1 and any(outcome.record for outcome in outcomes):
        write_table(folder / TABLE_FILE, outcomes, overwrite=overwrite)
    return outcomes


def write_table(path: Path, outcomes: Sequence[Outcome], *, overwrite: bool) -> None:
    """Write `scores.csv`, a row a volume, highest score first and failures last."""

    def row(outcome: Outcome) -> dict[str, object]:
        if outcome.record is None:
            return {"file": outcome.job.path.name, "seconds": round(outcome.seconds, 2), "error": outcome.error}
        record = outcome.record
        return {
            "file": outcome.job.path.name,
            "score": record["volume"]["score"],
            "p_value": record["volume"]["p_value"],
            "abnormal": int(record["volume"]["abnormal"]),
            "above_threshold_ml": record["map"]["above_threshold_ml"],
            "highest_z": record["map"]["highest_z"],
            "seconds": round(outcome.seconds, 2),
        }

    rows = sorted((row(outcome) for outcome in outcomes), key=lambda r: -float(str(r.get("score", -1e9))))
    with atomic_path(path, overwrite=overwrite) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
