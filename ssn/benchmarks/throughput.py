"""A cohort's throughput: several volumes at once, against reading, computing and writing alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median_high
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from ssn.benchmarks.contenders import export_baseline, random_volume
from ssn.benchmarks.measure import Ratio, Tell, interleaved, timed_rounds
from ssn.benchmarks.one_volume import peak_rss
from ssn.benchmarks.runners import choose_engines, open_graph
from ssn.benchmarks.volumes import Scan
from ssn.core.bundle import Bundle, load_bundle
from ssn.core.errors import BackendError
from ssn.core.volume import read_volume
from ssn.runtime.backend import DEFAULT_BATCH, Backend, StageTimes, run_batches
from ssn.runtime.cohort import run_jobs, volumes_at_once
from ssn.runtime.jobs import Job
from ssn.runtime.machine import cores
from ssn.runtime.memory import MEGABYTE
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.outputs import write_outputs
from ssn.runtime.pipeline import infer_volume

if TYPE_CHECKING:
    from ssn.benchmarks.baselines import Baseline


def measure_throughput(
    scan: Path,
    bundle: Bundle,
    folder: Path,
    *,
    volumes: int,
    rounds: int,
    threads: int,
    tell: Callable[[int, int], None],
) -> dict[str, Any]:
    """Time a cohort of copies of a volume, and its reading, computing and writing alone, in interleaved rounds.

    Returns
    -------
    dict
        "efficiency" is the time of the slowest part alone over the time of all, with its interval: 1 where the others
        cost nothing. Computing alone takes one volume after the other with all threads. "efficiency_at_once" is against
        computing as many volumes at once as the cohort does: there the others cost something on few cores, because all
        three compute: "cpu_s" is the CPU time of all of them, which the cores have to share.
    """
    jobs = [Job(scan, f"v{index}") for index in range(volumes)]
    at_once = volumes_at_once(volumes, threads)
    with (
        threadpool_limits(1, user_api="blas"),  # as in a cohort
        OnnxRuntimeBackend(bundle, threads) as backend,
        OnnxRuntimeBackend(bundle, threads, at_once=at_once) as shared,
        ThreadPoolExecutor(at_once) as pool,
    ):
        batch = backend.max_slices or DEFAULT_BATCH
        volume = read_volume(scan)
        result = infer_volume(volume, bundle, backend, batch=batch)

        def decode() -> None:
            for job in jobs:
                read_volume(job.path)

        def compute() -> None:
            for _ in jobs:
                infer_volume(volume, bundle, backend, batch=batch)

        def compute_at_once() -> None:
            done = [pool.submit(infer_volume, volume, bundle, shared, batch=batch) for _ in jobs]
            for future in done:
                future.result()

        def write() -> None:
            for job in jobs:
                write_outputs(result, bundle, backend, folder, job.name, picture=False, overwrite=True)

        def overlapped() -> None:
            _cohort(jobs, folder, bundle, shared)

        runs = {
            "decode": decode, "compute": compute, "compute at once": compute_at_once, "write": write,
            "all": overlapped,
        }  # fmt: skip
        counted = {name: partial(_with_cpu_time, run) for name, run in runs.items()}
        samples = timed_rounds(counted, rounds=rounds, warm_up=1, tell=tell)
    seconds = {name: parts["total"] for name, parts in samples.items()}
    slowest = max(("decode", "compute", "write"), key=lambda name: median_high(seconds[name]))
    return {
        "volumes": volumes,
        "engine": "onnxruntime",
        "method": bundle.spec.name,
        "samples_s": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "volumes_a_minute": round(60 * volumes / median_high(seconds["all"]), 2),
        "slowest": slowest,
        "cpu_s": round(median_high(samples["all"]["cpu"]), 4),
        "cores": cores(),
        "at_once": at_once,
        "efficiency": Ratio.bootstrap(seconds[slowest], seconds["all"]).as_json(),
        "efficiency_at_once": Ratio.bootstrap(seconds["compute at once"], seconds["all"]).as_json(),
        "one_after_another": Ratio.bootstrap(
            [sum(parts) for parts in zip(*(seconds[name] for name in ("decode", "compute", "write")), strict=True)],
            seconds["all"],
        ).as_json(),
    }


def _cohort(jobs: Sequence[Job], folder: Path, bundle: Bundle, backend: Backend) -> None:
    run_jobs(
        jobs, folder, bundle, backend, threshold=None, batch=DEFAULT_BATCH, picture=False, overwrite=True, overview=True
    )


def _with_cpu_time(run: Callable[[], None]) -> dict[str, float]:
    start = time.process_time()  # of all threads
    run()
    return {"cpu": time.process_time() - start}


def measure_slices(
    scan: Scan,
    bundle: Bundle,
    baselines: Sequence[Baseline],
    folder: Path,
    *,
    counts: Sequence[int],
    rounds: int,
    threads: int,
) -> dict[str, list[dict[str, Any]]]:
    """Time networks on a volume of so many slices, the slice pipeline's two and 3D ones, in interleaved rounds.

    A 3D network pads the slices to the multiple that it takes.

    Returns
    -------
    name -> for each count "slices" and the spread of times
    """
    spec = bundle.spec
    runs: dict[tuple[str, int], Callable[[], object]] = {}
    stack = spec.cut(read_volume(scan.path))
    window = spec.grid.window
    counts = [count for count in counts if count <= len(stack.occupancy) * window]
    (engine,) = choose_engines(["onnxruntime"])
    with OnnxRuntimeBackend(bundle, threads) as backend:
        for count in counts:
            part = stack.part(0, count // window)
            runs[spec.name, count] = partial(run_batches, backend, part, spec.occupancy, DEFAULT_BATCH, StageTimes())
            for baseline in baselines:
                shape = baseline.input_shape((*scan.shape[:2], count))
                run = open_graph(engine, export_baseline(baseline, shape, folder), threads)
                runs[baseline.name, count] = partial(run, random_volume(shape))
        spreads = interleaved({f"{name} {count}": run for (name, count), run in runs.items()}, rounds=rounds, warm_up=1)
    found: dict[str, list[dict[str, Any]]] = {}
    for name, count in runs:
        found.setdefault(name, []).append({"slices": count, **spreads[f"{name} {count}"].as_json()})
    return found


def measure_scaling(
    scan: Path,
    bundle: Bundle,
    folder: Path,
    *,
    counts: Sequence[int],
    threads: int,
    tell: Tell = lambda what, step, steps: None,
) -> list[dict[str, Any]]:
    """Time and peak memory of cohorts of several sizes, each in a process of its own."""
    rows = []
    for index, count in enumerate(counts):
        tell(f"{count} volumes in a process of their own", index, len(counts))
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
    with OnnxRuntimeBackend(bundle, threads, at_once=volumes_at_once(count, threads)) as backend:
        start = time.perf_counter()
        _cohort(jobs, Path(folder), bundle, backend)
        seconds = time.perf_counter() - start
    return {"volumes": count, "seconds": round(seconds, 3), "peak_mb": round(peak_rss() / MEGABYTE, 1)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_one_cohort(*json.loads(sys.argv[1]))) + "\n")
