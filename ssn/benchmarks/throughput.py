"""A cohort's throughput: reading, computing and writing overlapped, against each alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ssn.benchmarks.measure import Ratio, interleaved, timed_rounds
from ssn.benchmarks.one_volume import peak_rss
from ssn.core.bundle import Bundle, load_bundle
from ssn.core.errors import BackendError
from ssn.core.slices import cut_slices
from ssn.core.volume import read_volume
from ssn.runtime.backend import DEFAULT_BATCH, Backend, StageTimes, run_batches
from ssn.runtime.cohort import Job, run_jobs
from ssn.runtime.memory import MEGABYTE
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.pipeline import infer_volume, write_outputs


def measure_throughput(
    scan: Path, bundle: Bundle, folder: Path, *, volumes: int, rounds: int, threads: int
) -> dict[str, Any]:
    """Time a cohort of copies of a volume, and its reading, computing and writing alone, in interleaved rounds.

    Returns
    -------
    dict
        "efficiency" is the time of the slowest part alone over the time of all, with its interval: 1 where the others
        cost nothing. On few cores they do, because all three compute.
    """
    jobs = [Job(scan, f"v{index}") for index in range(volumes)]
    with OnnxRuntimeBackend(bundle, threads) as backend:
        batch = backend.max_slices or DEFAULT_BATCH
        volume = read_volume(scan)
        result = infer_volume(volume, bundle, backend, batch=batch)

        def decode() -> None:
            for job in jobs:
                read_volume(job.path)

        def compute() -> None:
            for _ in jobs:
                infer_volume(volume, bundle, backend, batch=batch)

        def write() -> None:
            for job in jobs:
                write_outputs(result, bundle, backend, folder, job.name, picture=False, overwrite=True)

        def overlapped() -> None:
            _cohort(jobs, folder, bundle, backend)

        samples = timed_rounds(
            {"decode": decode, "compute": compute, "write": write, "all": overlapped}, rounds=rounds, warm_up=1
        )
    seconds = {name: parts["total"] for name, parts in samples.items()}
    slowest = max(("decode", "compute", "write"), key=lambda name: sorted(seconds[name])[rounds // 2])
    return {
        "volumes": volumes,
        "engine": "onnxruntime",
        "method": bundle.spec.name,
        "samples_s": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "volumes_a_minute": round(60 * volumes / sorted(seconds["all"])[rounds // 2], 2),
        "slowest": slowest,
        "efficiency": Ratio.bootstrap(seconds[slowest], seconds["all"]).as_json(),
        "one_after_another": Ratio.bootstrap(
            [sum(parts) for parts in zip(*(seconds[name] for name in ("decode", "compute", "write")), strict=True)],
            seconds["all"],
        ).as_json(),
    }


def _cohort(jobs: Sequence[Job], folder: Path, bundle: Bundle, backend: Backend) -> None:
    run_jobs(jobs, folder, bundle, backend, threshold=None, batch=DEFAULT_BATCH, picture=False, overwrite=True)


def measure_slices(
    scan: Path, bundle: Bundle, *, counts: Sequence[int], rounds: int, threads: int
) -> list[dict[str, Any]]:
    """Time of both networks on the first so many slices of a volume."""
    spec = bundle.spec
    stack = cut_slices(read_volume(scan), spec.grid, spec.cells, spec.normalisation)
    windows = [count // spec.grid.window for count in counts if count <= len(stack.slices)]
    with OnnxRuntimeBackend(bundle, threads) as backend:
        runs = {}
        for count in windows:
            part = replace(stack, slices=stack.slices[: count * spec.grid.window], occupancy=stack.occupancy[:count])
            runs[str(count)] = partial(run_batches, backend, part, spec.occupancy, DEFAULT_BATCH, StageTimes())
        spreads = interleaved(runs, rounds=rounds, warm_up=1)
    return [{"slices": count * spec.grid.window, **spreads[str(count)].as_json()} for count in windows]


def measure_scaling(
    scan: Path,
    bundle: Bundle,
    folder: Path,
    *,
    counts: Sequence[int],
    threads: int,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Time and peak memory of cohorts of several sizes, each in a process of its own."""
    rows = []
    for count in counts:
        say(f"{count} volumes in a process of their own")
        argument = json.dumps([str(scan), str(bundle.folder), str(folder), count, threads])
        done = subprocess.run(
            [sys.executable, "-m", "ssn.benchmarks.throughput", argument], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BackendError(f"{count} volumes: {(done.stderr.strip().splitlines() or ['killed'])[-1][:300]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def _one_cohort(scan: str, bundle_folder: str, folder: str, count: int, threads: int) -> dict[str, Any]:
    bundle = load_bundle(Path(bundle_folder))
    jobs = [Job(Path(scan), f"v{index}") for index in range(count)]
    with OnnxRuntimeBackend(bundle, threads) as backend:
        start = time.perf_counter()
        _cohort(jobs, Path(folder), bundle, backend)
        seconds = time.perf_counter() - start
    return {"volumes": count, "seconds": round(seconds, 3), "peak_mb": round(peak_rss() / MEGABYTE, 1)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_one_cohort(*json.loads(sys.argv[1]))) + "\n")
