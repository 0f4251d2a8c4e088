"""Batches of noise, with a few places in each, as a volume's would come."""

import numpy as np

from ssn.runtime.backend import Batch


def batches(bundle, counts=(4, 4, 1, 3, 2, 4)):
    spec, rng, first = bundle.spec, np.random.default_rng(1), 2
    for count in counts:
        slices = rng.random((count * spec.slices_a_window, 1, spec.grid.plane, spec.grid.plane), np.float32)
        cells = count * spec.cells**2
        places = np.sort(rng.choice(cells, rng.integers(1, cells // 4), replace=False)) + first * spec.cells**2
        yield Batch(slices, places, first)
        first += count
