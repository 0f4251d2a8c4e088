import numpy as np
import pytest

from ssn.core.brain_box import brain_box, plane_counts
from ssn.core.geometry import AxisMap, GridConfig, Placement

SHAPE = (300, 41, 37)  # longer than a byte can count
BOX = (slice(20, 290), slice(5, 33), slice(0, 30))


@pytest.fixture
def brain():
    inside = np.zeros(SHAPE, bool)
    inside[BOX] = np.random.default_rng(0).random((270, 28, 30)) > 0.3
    return inside


def test_planes_are_counted_along_each_axis(brain):
    for axis, counts in enumerate(plane_counts(brain)):
        np.testing.assert_array_equal(counts, brain.sum(tuple(other for other in range(3) if other != axis)))
    assert [counts.max() for counts in plane_counts(np.ones(SHAPE, bool))] == [41 * 37, 300 * 37, 300 * 41]


def test_the_box_is_the_smallest_and_its_margin_ends_with_the_volume(brain):
    assert brain_box(brain) == BOX
    assert brain_box(brain, margin=7) == (slice(13, 297), slice(0, 40), slice(0, 37))


@pytest.mark.parametrize("scale", [0.4, 0.97, 1.0, 2.3])
def test_a_box_of_a_volume_is_seen_as_the_volume_is_with_nothing_around_it(brain, scale):
    values = np.where(brain, np.random.default_rng(1).random(SHAPE), 0).astype(np.float32)
    axes = tuple(AxisMap(size, scale, offset) for size, offset in zip(SHAPE, (-7.3, 40.1, 11.0), strict=True))
    placement = Placement(GridConfig(plane=96, depth=96), axes)
    for thick in (None, "slab", "middle"):
        whole = placement.to_canonical(values, 2, 30, thick)
        np.testing.assert_allclose(placement.to_canonical(values[BOX], 2, 30, thick, BOX), whole, atol=1e-5)
    np.testing.assert_allclose(
        placement.cell_means(values[BOX], 2, 30, 24, BOX), placement.cell_means(values, 2, 30, 24), atol=1e-5
    )
    maps = np.random.default_rng(2).random((2, 28, 24, 24)).astype(np.float32)
    whole, part = (
        np.concatenate([found for _, found in placement.native_slabs(maps, 2, 3.0, *box)], axis=2)
        for box in ((), (BOX,))
    )
    np.testing.assert_allclose(part, whole[:, *BOX], atol=1e-5)
    assert whole.any()
