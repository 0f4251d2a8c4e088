import numpy as np
import pytest

from ssn.core import tails
from ssn.core.tails import highest, lowest, outer_percentiles

_RNG = np.random.default_rng(0)
_VALUES = {
    "normal": _RNG.normal(size=200_000),
    "integers with many ties": _RNG.integers(0, 200, 100_000),
    "two values": np.repeat([0.0, 1.0], 40_000),
    "one value": np.ones(50_000),
    "few": _RNG.normal(size=7),
    "ascending": np.arange(100_000),
    # The sample sees nothing of the tail, or only the tail.
    "high where the sample does not look": np.where(np.arange(61_000) % 61 == 7, 1e6, 0) + np.arange(61_000),
    "high where the sample looks": np.where(np.arange(61_000) % 61 == 0, 1e6, 0) + np.arange(61_000),
}


@pytest.mark.parametrize("values", _VALUES.values(), ids=_VALUES)
@pytest.mark.parametrize("share", [1e-5, 0.005, 0.3, 1.0])
def test_a_tail_is_what_sorting_all_values_gives(values, share):
    values = values.astype(np.float32)
    count = max(1, round(share * values.size))
    np.testing.assert_array_equal(highest(values, count), np.sort(values)[-count:])
    np.testing.assert_array_equal(lowest(values, count), np.sort(values)[:count])


@pytest.mark.parametrize("values", _VALUES.values(), ids=_VALUES)
@pytest.mark.parametrize("low_high", [(0.5, 99.5), (0.0, 100.0), (1.0, 99.5), (30.0, 60.0)])
def test_percentiles_are_numpys(values, low_high):
    values = values.astype(np.float32)
    expected = np.percentile(values.astype(np.float64), low_high)
    np.testing.assert_allclose(outer_percentiles(values, *low_high), expected, rtol=1e-12)


def test_only_the_tail_is_sorted(monkeypatch):
    values, sorted_sizes = _VALUES["normal"].astype(np.float32), []
    sort = np.sort
    monkeypatch.setattr(tails.np, "sort", lambda given: sorted_sizes.append(given.size) or sort(given))
    highest(values, 1000)
    assert len(sorted_sizes) == 1 and 1000 <= sorted_sizes[0] < 4000
