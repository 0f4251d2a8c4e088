"""Parts of batches that a CPU computes side by side.

An operator on two cores takes more than half of its time on one, because not all of it is shared; two parts of a batch,
each on its own core, waste nothing. A batch is halved, so that both together take about the memory of one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssn.runtime.backend import Batch, StageTimes

PARTS = 2  # computed at a time, whatever the number of cores: each takes memory
Compute = Callable[[Batch, StageTimes], NDArray[np.float32]]


def parts_at_once(threads: int) -> int:
    """Parts to compute side by side, with an equal share of the threads each: 2, or 1 where they do not divide."""
    return PARTS if threads % PARTS == 0 else 1


def halves(batch: Batch, each: int, cells: int) -> list[Batch]:
    """Split a batch by windows into two; one that cannot be split stays whole.

    Parameters
    ----------
    each : slices of a window that the encoder sees
    cells : map cells a window
    """
    windows = (len(batch.slices) // each + 1) // 2
    first = batch.first + windows
    cut = int(np.searchsorted(batch.places, first * cells))
    if not 0 < cut < len(batch.places):
        return [batch]
    slices = windows * each
    return [
        Batch(batch.slices[:slices], batch.places[:cut], batch.first),
        Batch(batch.slices[slices:], batch.places[cut:], first),
    ]


def run_side_by_side(
    compute: Compute, batches: Iterable[Batch], split: Callable[[Batch], list[Batch]], times: StageTimes
) -> Generator[NDArray[np.float32], None, None]:
    """Yield what `compute` says of each batch, in order, its parts computed by this thread and another.

    One batch is taken ahead, so that neither thread waits for the other at a batch's end. `times` gets the time on the
    clock, shared among the stages as the parts' own times are.
    """
    start = time.perf_counter()
    own: list[StageTimes] = []

    def timed(part: Batch) -> NDArray[np.float32]:
        mine = StageTimes()
        own.append(mine)
        return compute(part, mine)

    # Not a pool of two: memory that a thread gives back to the allocator stays that thread's.
    pool = ThreadPoolExecutor(PARTS - 1, thread_name_prefix="part")
    waiting: deque[list[_Part]] = deque()

    def first_of_waiting() -> NDArray[np.float32]:
        whole = waiting[0]
        while (late := next((part for part in whole if not part.done), None)) is not None:
            free = next(
                (part for parts in waiting for part in parts if part.value is None and part.future.cancel()), None
            )
            if free is None:  # this one is being computed, and there is no other left to do meanwhile
                late.value = late.future.result()
            else:
                free.value = timed(free.batch)
        waiting.popleft()
        return np.concatenate([part.result() for part in whole])

    try:
        for batch in batches:
            waiting.append([_Part(part, pool.submit(timed, part)) for part in split(batch)])
            if len(waiting) > 1:
                yield first_of_waiting()
        while waiting:
            yield first_of_waiting()
    finally:
        pool.shutdown(cancel_futures=True)  # what runs ends first: the sessions may be closed next
        spent = StageTimes()
        for part in own:
            for stage, seconds in part.seconds.items():
                spent.add(stage, seconds)
        clock, total = time.perf_counter() - start, sum(spent.seconds.values())
        for stage, seconds in spent.seconds.items():
            times.add(stage, clock * seconds / total)


def each_in_order(
    compute: Callable[..., NDArray[np.float32]], given: Iterable[tuple[Any, ...]], threads: int
) -> Generator[NDArray[np.float32], None, None]:
    """Yield what `compute` says of each, in order, computed by so many threads; one is taken ahead, and no more."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[NDArray[np.float32]]] = deque()
        for arguments in given:
            waiting.append(pool.submit(compute, *arguments))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@dataclass
class _Part:
    """A part of a batch: with the other thread, unless this one takes it from there before that has begun.

    Attributes
    ----------
    value : what this thread computed or fetched
    """

    batch: Batch
    future: Future[NDArray[np.float32]]
    value: NDArray[np.float32] | None = None

    @property
    def done(self) -> bool:
        """Whether there is a result, or an error."""
        return self.value is not None or (self.future.done() and not self.future.cancelled())

    def result(self) -> NDArray[np.float32]:
        """Its log-likelihoods; raises what computing them raised."""
        return self.future.result() if self.value is None else self.value
