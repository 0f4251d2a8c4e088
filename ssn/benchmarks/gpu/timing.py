"""How one way to compute is timed on a GPU: with and without overlap and graphs, from file to map, and its memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ssn.benchmarks.measure import interleaved, reason_of, seconds_of
from ssn.core.bundle import Bundle
from ssn.runtime.backend import Batch, Runs, StageTimes
from ssn.runtime.cuda import Cuda
from ssn.runtime.device_pipeline import DevicePipeline, Stages
from ssn.runtime.memory import MEGABYTE, BatchLayout
from ssn.runtime.pipeline import infer_volume
from ssn.runtime.schedule import DEFAULT_SLOTS, Schedule

WARM_UP = 3
# (overlap, graphs): what each of the two brings
_VARIANTS = {
    "streams and graphs": (True, True),
    "streams": (True, False),
    "graphs": (False, True),
    "neither": (False, False),
}
_SAMPLED_EVERY = 0.002  # s

Report = dict[str, Any]
Opened = Callable[[bool, bool], AbstractContextManager[DevicePipeline]]  # (overlap, graphs)
T = TypeVar("T")


def attempt(measure: Callable[[], T]) -> T | Report:
    """Return the result of a measurement, or the reason why there is none."""
    try:
        return measure()
    except Exception as error:  # torch and compilers raise what they like; the other parts must still be measured
        return {"problem": reason_of(error)}


def consume(runner: Runs, batches: Sequence[Batch], times: StageTimes) -> None:
    """Compute batches and drop what comes out."""
    for _ in runner.run(batches, times):
        pass


def stages_ms(times: StageTimes, rounds: int) -> dict[str, float]:
    """Milliseconds that each stage took a round."""
    return {stage: round(seconds * 1000 / rounds, 3) for stage, seconds in times.seconds.items()}


def time_variants(opened: Opened, batches: Sequence[Batch], rounds: int) -> Report:
    """Time a volume with and without overlapped streams and CUDA graphs, in interleaved rounds.

    Each variant says whether graphs were launched, and if not, though asked for, why; one that cannot run says why
    not. `profile` has the kernels of the one with both, or the first that runs.
    """
    with ExitStack() as stack:
        made = {
            name: attempt(partial(_warmed, stack, opened, switches, batches)) for name, switches in _VARIANTS.items()
        }
        runners = {name: runner for name, runner in made.items() if not isinstance(runner, dict)}
        times = {name: StageTimes() for name in runners}
        runs = {name: partial(consume, runner, batches, times[name]) for name, runner in runners.items()}
        spreads = interleaved(runs, rounds=rounds, warm_up=0)
        from ssn.benchmarks.gpu.kernels import kernel_times

        profile = attempt(lambda: kernel_times(partial(consume, next(iter(runners.values())), batches, StageTimes())))
    variants: Report = {name: problem for name, problem in made.items() if isinstance(problem, dict)}
    variants |= {
        name: {
            "volume": spread.as_json(),
            "device_ms": stages_ms(times[name], rounds),
            "cuda_graphs": _VARIANTS[name][1] and runners[name].graph_problem is None,
            "graph_problem": runners[name].graph_problem,
        }
        for name, spread in spreads.items()
    }
    return {"variants": variants, "profile": profile}


def pipeline_of(
    cuda: Cuda, layout: BatchLayout, max_batch: int, stages: Stages, *, overlap: bool, graphs: bool
) -> DevicePipeline:
    """Make the pipeline over what computes, with the product's own number of buffers or without overlap."""
    schedule = Schedule(DEFAULT_SLOTS if overlap else 1, overlap)
    return DevicePipeline(cuda, layout, max_batch // layout.window, stages, schedule, graphs=graphs)


def _warmed(stack: ExitStack, opened: Opened, switches: tuple[bool, bool], batches: Sequence[Batch]) -> DevicePipeline:
    runner = stack.enter_context(opened(*switches))
    for _ in range(WARM_UP):
        consume(runner, batches, StageTimes())
    return runner


def peak_memory(measure: Callable[[], T]) -> tuple[T, float]:
    """Return the result of `measure`, and the GPU memory in MB that was taken at its height, by all of this machine."""
    with Cuda() as cuda:
        before = lowest = cuda.memory()[0]
        done = threading.Event()

        def sample() -> None:
            nonlocal lowest
            while not done.wait(_SAMPLED_EVERY):
                lowest = min(lowest, cuda.memory()[0])

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            result = measure()
        finally:
            done.set()
            sampler.join()
    return result, round((before - lowest) / MEGABYTE, 1)


def first_volume(opened: Callable[[], AbstractContextManager[Runs]], batches: Sequence[Batch]) -> Report:
    """Time a volume with all that comes before the first, and the GPU memory that it takes."""

    def once() -> None:
        with opened() as runner:
            consume(runner, batches, StageTimes())

    seconds, peak = peak_memory(lambda: seconds_of(once))
    return {"first_volume_s": round(seconds, 2), "peak_memory_mb": peak}


def end_to_end(backend: Runs, bundle: Bundle, scan: Path, batch: int, rounds: int) -> Report:
    """Time a volume from its file to its map."""
    for _ in range(WARM_UP):
        infer_volume(scan, bundle, backend, batch=batch)
    stages = StageTimes()

    def run() -> None:
        for stage, seconds in infer_volume(scan, bundle, backend, batch=batch).times.seconds.items():
            stages.add(stage, seconds)

    spread = interleaved({"volume": run}, rounds=rounds, warm_up=0)["volume"]
    return {
        "volume": spread.as_json(),
        "stages_ms": stages_ms(stages, rounds),
    }
