"""Peak memory and cold start: each method takes one volume from file to file in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssn.benchmarks.contenders import SliceModel, export_baseline
from ssn.benchmarks.measure import Ratio, Tell
from ssn.benchmarks.one_volume import Job
from ssn.benchmarks.runners import Engine, engine_problem
from ssn.benchmarks.volumes import Scan
from ssn.core.errors import BackendError, SsnError

if TYPE_CHECKING:
    from ssn.benchmarks.baselines import Baseline

Row = dict[str, Any]


@dataclass(frozen=True)
class MemoryPlan:
    """What is measured.

    Attributes
    ----------
    repeats : processes for each slice pipeline; a 3D network, whose run can take minutes, has one
    longest : seconds after which a process is given up
    """

    scan: Scan
    models: Sequence[SliceModel]
    baselines: Sequence[Baseline]
    engines: Sequence[Engine]
    threads: int
    folder: Path
    repeats: int = 3
    longest: float = 600.0


def measure_memory(plan: MemoryPlan, tell: Tell = lambda what, step, steps: None) -> Iterator[Row]:
    """Yield a row for each method and engine: peak memory, time until it was ready, time of its first volume.

    Networks see the whole volume, or one window where they slide; a diffusion runs one step.
    """
    for engine in plan.engines:
        problem = engine_problem(engine)
        if problem is not None:
            yield {"engine": engine.name, "problem": problem}
            continue
        peaks: dict[str, list[float]] = {}
        steps = len(plan.models) + len(plan.baselines)
        for index, model in enumerate(plan.models):
            tell(f"{engine.name}: {model.name}", index, steps)
            row, found = _row(plan, engine, model.name, "slice pipeline", partial(_slice_job, plan, engine, model))
            peaks[model.name] = [run["peak_mb"] for run in found]
            yield row
        for index, baseline in enumerate(plan.baselines, len(plan.models)):
            tell(f"{engine.name}: {baseline.name}", index, steps)
            make = partial(_baseline_job, plan, engine, baseline)
            row, found = _row(plan, engine, baseline.name, baseline.group, make)
            if found:
                own = [run["peak_mb"] for run in found]
                row["against"] = {
                    name: {"memory": Ratio.extremes(own, peak).as_json()} for name, peak in peaks.items() if peak
                }
            yield row


def _slice_job(plan: MemoryPlan, engine: Engine, model: SliceModel) -> Job:
    return Job(
        engine.name,
        plan.threads,
        str(plan.scan.path),
        str(plan.folder),
        bundle=str(model.bundle.folder),
        model=model.name,
    )


def _baseline_job(plan: MemoryPlan, engine: Engine, baseline: Baseline) -> Job:
    shape = baseline.input_shape(plan.scan.shape)
    graph = None if engine.kind == "torch" else str(export_baseline(baseline, shape, plan.folder))
    return Job(
        engine.name,
        plan.threads,
        str(plan.scan.path),
        str(plan.folder),
        baseline=baseline.name,
        graph=graph,
        shape=shape,
    )


def _row(
    plan: MemoryPlan, engine: Engine, method: str, group: str, make: Callable[[], Job]
) -> tuple[Row, list[dict[str, Any]]]:
    row: Row = {"engine": engine.name, "precision": engine.precision, "method": method, "group": group}
    try:
        job = make()
        runs = [_fresh(job, plan.longest) for _ in range(plan.repeats if group == "slice pipeline" else 1)]
    except SsnError as error:
        return {**row, "problem": str(error)}, []
    best = min(runs, key=lambda run: float(run["process_s"]))
    return {**row, **best, "peak_mb": max(run["peak_mb"] for run in runs), "runs": runs}, runs


def _fresh(job: Job, longest: float) -> dict[str, Any]:
    """Run a job in a new process and add how long that process lived: its cold start, from nothing to files."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ssn.benchmarks.one_volume", job.as_argument()],
            capture_output=True,
            text=True,
            check=False,
            timeout=longest,
        )
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"{job.baseline or job.bundle}: not done after {longest:.0f} s") from error
    seconds = time.perf_counter() - start
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"signal {-done.returncode}; is memory short?"])[-1]
        raise BackendError(f"{job.baseline or job.bundle}: {reason[:300]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "process_s": round(seconds, 3)}
