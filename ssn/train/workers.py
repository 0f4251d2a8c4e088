"""Processes that share a list of work, and how they end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children, get_context

from ssn.core.errors import SsnError


@contextmanager
def worker_processes(
    count: int, prepare: Callable[..., None] | None = None, *given: object
) -> Iterator[ProcessPoolExecutor]:
    """Lend `count` fresh processes; an interruption ends them with this one, whatever they do.

    Parameters
    ----------
    prepare, given : called in each process before its first work, and its arguments

    Raises
    ------
    SsnError
        If a process is killed from outside.
    """
    begin = partial(_begin, prepare, *given)
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=begin) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise SsnError("a process was killed, probably because memory was short; start fewer at once") from error
        except (KeyboardInterrupt, GeneratorExit):
            for process in active_children():
                process.terminate()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin(prepare: Callable[..., None] | None, *given: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the one that started them decides
    if prepare is not None:
        prepare(*given)
