"""FP32 to FP16 on the host by the bits, because numpy's own cast converts one number at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Between the exponents' offsets, 127 and 15, in FP32's bits; less half of what the shift drops, so that it rounds.
_OFFSET = ((127 - 15) << 23) - (1 << 12)
_DROPPED = 13  # bits of the mantissa


def copy_as_half(target: NDArray[np.float16], source: NDArray[np.float32]) -> None:
    """Copy grey values in 0..1 into FP16, rounded to the nearest; of two that are as near, the larger.

    What is below 2^-14, where FP16 is no longer exact, is off by 2^-15 at most; 0 stays 0.

    Parameters
    ----------
    target, source : of one shape (N, ...), each contiguous
    """
    scratch = np.empty(source.shape[1:], np.int32)
    for place, values in zip(target.view(np.int16), source.view(np.int32), strict=True):
        np.subtract(values, _OFFSET, out=scratch)
        np.right_shift(scratch, _DROPPED, out=scratch)
        np.maximum(scratch, 0, out=scratch)
        np.copyto(place, scratch, casting="unsafe")
