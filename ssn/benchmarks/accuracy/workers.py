"""Measure every method, one after the other or several at once, each in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass

from ssn.benchmarks.accuracy.measured import MethodAccuracy, Splits, measure
from ssn.benchmarks.accuracy.methods import Build
from ssn.benchmarks.measure import Tell
from ssn.runtime.machine import cores
from ssn.train.workers import worker_processes

Make = Callable[[Tell], Mapping[str, Build]]  # says how to make each method; pickled where several processes do


@dataclass(frozen=True)
class Measured:
    """A method's accuracy, and the seconds that it took to learn and to measure."""

    name: str
    accuracy: MethodAccuracy
    seconds: Mapping[str, float]


def measure_in_turn(
    builds: Mapping[str, Build], splits: Splits, shown: Mapping[str, int], tell: Tell
) -> Iterator[Measured]:
    """Yield each method as it is done. A method is made when its turn comes and dropped after it.

    Parameters
    ----------
    shown : axial slice to keep, by case name
    """
    for name, build in builds.items():
        yield _measure(name, build, splits, shown, tell)


def measure_at_once(
    make: Make, names: Sequence[str], splits: Splits, shown: Mapping[str, int], tell: Tell, processes: int
) -> Iterator[Measured]:
    """Do the same by several processes, in whatever order methods are done.

    They share the cores, and each has its own copy of what its methods learn from. Where one fails, those that were
    begun are still measured and yielded; no other is begun, and the failure is raised at the end.
    """
    threads = max(1, cores() // processes)
    failure: Exception | None = None
    with worker_processes(processes, _start, make, threads) as pool:
        # The last first: the peers, of which the flows take the longest, would else be waited for at the end.
        tasks = [pool.submit(_measure_here, name, splits, shown) for name in reversed(names)]
        for done, task in enumerate(as_completed(tasks), 1):
            if task.cancelled():
                continue
            try:
                found = task.result()
            except Exception as error:
                failure = failure or error
                for other in tasks:
                    other.cancel()
                continue
            tell(f"{found.name}: measured", done, len(tasks))
            yield found
        if failure:
            raise failure


def _measure(name: str, build: Build, splits: Splits, shown: Mapping[str, int], tell: Tell) -> Measured:
    started = time.perf_counter()
    method = build()
    learned = time.perf_counter()
    accuracy = measure(name, method, splits, shown, tell)
    seconds = {"learning": learned - started, "measuring": time.perf_counter() - learned}
    return Measured(name, accuracy, {part: round(value, 1) for part, value in seconds.items()})


_builds: dict[str, Build] = {}  # of a process that was started below


def _start(make: Make, threads: int) -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(threads)
    _builds.update(make(_silent))


def _measure_here(name: str, splits: Splits, shown: Mapping[str, int]) -> Measured:
    return _measure(name, _builds[name], splits, shown, _silent)


def _silent(what: str, step: int, steps: int) -> None:
    """Say nothing: one bar cannot show what several processes do."""
