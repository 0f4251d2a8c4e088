"""Which kernels a GPU's time goes to, whatever launched them: torch's profiler records all of a process's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_RUNS = 5  # over which times are averaged
_SHOWN = 15
_NAME = 100  # characters: templates' names are longer than a page is wide


def kernel_times(run: Callable[[], object]) -> dict[str, Any]:
    """Device time of each kernel and copy of one run, which has run before, in ms, the longest first."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(_RUNS):
            run()
        torch.cuda.synchronize()
    rows = sorted(
        (
            (event.self_device_time_total / 1000 / _RUNS, event.count / _RUNS, event.key)
            for event in profiler.key_averages()
        ),
        reverse=True,
    )
    total = sum(row[0] for row in rows)
    return {
        "kernels_ms": round(total, 3),
        "kernels": [
            {"name": name[:_NAME], "calls": round(count, 1), "ms": round(ms, 4), "share": round(ms / total, 3)}
            for ms, count, name in rows[:_SHOWN]
            if ms > 0
        ],
    }
