"""FP16 by bits is FP16."""

import numpy as np

from ssn.runtime.half import copy_as_half


def test_every_grey_value_is_the_nearest_half():
    grey = np.linspace(0, 1, 1_000_001, dtype=np.float32)[None]
    given = np.full(grey.shape, np.nan, np.float16)
    copy_as_half(given, grey)
    wanted = grey.astype(np.float16)
    normal = grey >= 2.0**-14
    error, least = np.abs(given - grey), np.abs(wanted - grey)
    np.testing.assert_array_equal(error[normal], least[normal])
    assert error[~normal].max() <= 2.0**-15
    assert given[0, 0] == 0
    assert given[0, -1] == 1
    assert (np.diff(given.astype(np.float32)) >= 0).all()
