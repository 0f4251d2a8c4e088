"""The highest and lowest of many values, without ordering the others.

A sample says where the tail probably begins; what lies beyond is few values, which are sorted. Where the sample
misled, all are.
"""

from __future__ import annotations

from math import floor

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]
_EVERY = 61  # one value of so many is in the sample; a prime, so that rows of a volume are not sampled at one place
_WIDER = 2.0  # the tail that the sample is asked for, of the one that is wanted


def highest(values: Values, count: int) -> Values:
    """Return the `count` highest of values (N,), ascending; `count` is 1 to N."""
    share = _WIDER * count / values.size
    tail = values
    if share < 1:
        tail = values[values >= np.quantile(values[::_EVERY], 1 - share)]
    return np.sort(tail if tail.size >= count else values)[-count:]


def lowest(values: Values, count: int) -> Values:
    """Return the `count` lowest of values (N,), ascending; `count` is 1 to N."""
    share = _WIDER * count / values.size
    tail = values
    if share < 1:
        tail = values[values <= np.quantile(values[::_EVERY], share)]
    return np.sort(tail if tail.size >= count else values)[:count]


def outer_percentiles(values: Values, low: float, high: float) -> tuple[float, float]:
    """Return two percentiles (0 to 100) of values (N,), as `numpy.percentile`; made for those near the ends."""
    last = values.size - 1
    lower, upper = (last * percentile / 100 for percentile in (low, high))
    below = lowest(values, min(floor(lower) + 2, values.size))
    above = highest(values, min(last - floor(upper) + 1, values.size))
    return (
        float(np.interp(lower, np.arange(below.size), below)),
        float(np.interp(upper, np.arange(values.size - above.size, values.size), above)),
    )
