"""Many volumes, several at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ssn.core.atomic import printable
from ssn.core.bundle import Bundle
from ssn.core.errors import SsnError
from ssn.core.outputs import make_folder
from ssn.runtime.backend import Backend, Batch, StageTimes
from ssn.runtime.jobs import Job, Outcome
from ssn.runtime.machine import cores
from ssn.runtime.outputs import finished_record, output_paths, write_outputs
from ssn.runtime.overview import overview_paths, remove_overview, write_overview
from ssn.runtime.own import refuse_existing, refuse_foreign
from ssn.runtime.pipeline import infer_volume

MOST_AT_ONCE = 8  # volumes, of some 150 MB each; more cores compute each volume faster instead


@dataclass(frozen=True)
class _Ended:
    """What a thread says of its volume; `at`: when it was on disk, or had failed."""

    record: dict[str, Any] | None
    error: str | None
    at: float


def volumes_at_once(jobs: int, threads: int | None) -> int:
    """Return how many volumes a CPU computes at once best: a core each, because one volume gains little from a second.

    Parameters
    ----------
    threads : that may be used; None: all cores
    """
    return max(1, min(jobs, threads or cores(), MOST_AT_ONCE))


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
    overview: bool,
    resume: bool = False,
    started: Callable[[Job], None] = lambda job: None,
    progress: Callable[[float], None] = lambda share: None,
    finished: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run every job; a bad volume is recorded and the others go on.

    As many volumes are in the encoder and the flow as the backend runs at once; around them two more are read, prepared
    or written. No more are in memory, however many there are. Outcomes come in the jobs' order, in this thread;
    `started` and `progress` are called in others.

    Parameters
    ----------
    overview : write the table and the page, too
    resume : keep the outputs of a volume that an earlier run finished, from the same file with the same bundle; others
        that are ours are replaced

    Raises
    ------
    OutputError
        Before any computing, if an output exists and is not to be overwritten, or the folder can't be written to.
    """
    overwrite = overwrite or resume
    make_folder(folder)
    refuse = refuse_foreign if overwrite else refuse_existing
    for job in jobs:
        refuse(output_paths(folder, job.name, picture=picture))
    if overview:
        refuse(overview_paths(folder, pictures=picture))
    gated = _Gated(backend)

    def run(job: Job) -> _Ended:
        started(job)
        record, error = None, None
        try:
            if resume:
                record = finished_record(
                    job.path, bundle, backend, folder, job.name, threshold=threshold, picture=picture
                )
            if record is None:
                result = infer_volume(job.path, bundle, gated, threshold=threshold, batch=batch, progress=progress)
                if overwrite:  # from here on an older table or page is not of what lies beside it
                    remove_overview(folder)
                record = write_outputs(result, bundle, backend, folder, job.name, picture=picture, overwrite=overwrite)
        except SsnError as refused:
            error = printable(str(refused))
        except MemoryError:
            error = f"{printable(job.path)}: memory is too short for it; free some, or resample it"
        except Exception as fault:  # of ours: the other volumes are still worth computing
            what = printable(" ".join(str(fault).split()))
            error = f"{printable(job.path)}: {type(fault).__name__}: {what}; please report this"
        return _Ended(record, error, time.perf_counter())

    outcomes: list[Outcome] = []
    before = time.perf_counter()
    # Threads of the linear algebra that draws maps would take the cores from the networks, and spin while they wait.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(backend.at_once + 2) as pool:
        running = [pool.submit(run, job) for job in jobs]
        try:
            for job, future in zip(jobs, running, strict=True):
                ended = future.result()
                at = max(ended.at, before)  # it may have ended before the one that is listed before it
                outcomes.append(Outcome(job, ended.record, ended.error, at, at - before))
                before = at
                finished(outcomes[-1])
        except BaseException:  # Ctrl-C too: what has not begun does not begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if overview and any(outcome.record for outcome in outcomes):
        write_overview(folder, outcomes, bundle, pictures=picture, overwrite=overwrite)
    return outcomes


class _Gated:
    """A backend that several threads share: each waits until it may run."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._free = backend, BoundedSemaphore(backend.at_once)
        self.max_slices = backend.max_slices

    def run(self, batches: Iterable[Batch], times: StageTimes) -> Generator[NDArray[np.float32], None, None]:
        with self._free, closing(self._backend.run(batches, times)) as results:
            yield from results
