"""What is taken for a brain, where it ends, and where it is placed; each by the number it comes to."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ssn.core.errors import VolumeError
from ssn.core.geometry import PAPER_GRID, GridConfig
from ssn.core.pose import STANDARD_LENGTH, STANDARD_TOP, STANDARD_WIDTH, brain_sides, find_brain, find_scale, place
from ssn.core.volume import Volume

MIDDLE = (GridConfig().plane - 1) / 2


def volume(data, zooms=(4.0, 4.0, 4.0), shear=0.0):
    affine = np.diag([*zooms, 1.0])
    affine[0, 2] = shear
    edges = tuple(float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0))
    ras = nib.orientations.axcodes2ornt("RAS")
    return Volume(data.astype(np.float32), edges, Path("scan.nii"), "", 0, affine, nib.Nifti1Header(), ras)


def cuboid(size, shape=(60, 70, 60), at=(8, 8, 8)):
    """A box of brain with grey values from 1 on, in a background of 0."""
    data = np.zeros(shape, np.float32)
    data[tuple(slice(low, low + n) for low, n in zip(at, size, strict=True))] = 1 + np.arange(size[2])
    return data


def of(size, **options):
    """The volume of a cuboid, its brain and the brain's ends."""
    given = volume(cuboid(size, **options))
    brain = given.data != 0
    return given, brain, brain_sides(brain, given.zooms)


@pytest.mark.parametrize(
    ("data", "zooms", "said"),
    [
        (np.pad(cuboid((40, 50, 40))[8:48, 8:58, 8:48], 1), (4, 4, 4), "no uniform background"),  # 86 % of it
        (np.random.default_rng(0).uniform(1, 2, (40, 48, 40)), (4, 4, 4), "no uniform background"),
        (np.random.default_rng(0).integers(1, 6, (40, 48, 40)), (2, 2, 2), "no uniform background"),  # 80 % of it
        (cuboid((15, 17, 15)), (4, 4, 4), "245 ml of it differ"),
        (cuboid((40, 45, 22)), (4, 4, 4), "2534 ml of it differ"),
        (cuboid((40, 34, 20)), (4, 4, 4), "is 160 mm from left to right and 136 mm from back to front"),
        (cuboid((38, 30, 15)), (4.0, 4.5, 4.0), "is 152 mm from left to right and 135 mm from back to front"),
    ],
)
def test_what_is_no_brain_is_refused_by_its_own_reason(data, zooms, said):
    with pytest.raises(VolumeError, match=said):
        find_brain(volume(data, zooms))


@pytest.mark.parametrize(
    ("data", "zooms", "shear"),
    [
        (cuboid((16, 17, 15)), (4, 4, 4), 0),  # 261 ml
        (cuboid((40, 45, 21)), (4, 4, 4), 0),  # 2419 ml
        (cuboid((40, 45, 22)), (4, 4, 3.5), 4),  # 2218 ml, though its voxels' edges multiply to 3367
        (cuboid((35, 34, 20)), (4, 4, 4), 0),  # a little wider than long
        (cuboid((40, 34, 18), at=(8, 0, 8)), (4, 4, 4), 0),  # whose length is not known
        (cuboid((40, 34, 18), at=(8, 36, 8)), (4, 4, 4), 0),
    ],
)
def test_what_may_be_a_brain_is_taken_for_one(data, zooms, shear):
    np.testing.assert_array_equal(find_brain(volume(data, zooms, shear)), data != 0)


def test_scattered_voxels_have_no_end():
    brain = np.zeros((40, 40, 40), bool)
    brain[3::12, 3::12, 3::12] = True
    for side in brain_sides(brain, (1.0, 1.0, 1.0)):
        assert (side.low, side.high, side.low_cut, side.high_cut, side.apart) == (0, 40, False, False, 0)


@pytest.mark.parametrize("end", [0, -1])
def test_what_lies_apart_before_or_behind_does_not_count_as_the_brain_s_end(end):
    data = cuboid((40, 45, 20))
    data[30:34, 30:34, 1 if end == 0 else -2] = 5
    _, _, z = brain_sides(data != 0, (4.0, 4.0, 4.0))
    assert (z.low, z.high, z.apart) == (8, 28, 16)


@pytest.mark.parametrize("end", [0, -1])
def test_what_lies_apart_at_the_border_cuts_no_brain_off(end):
    data = cuboid((40, 45, 20))
    data[20:36, 20:36, end] = 5  # 4096 mm^2
    _, _, z = brain_sides(data != 0, (4.0, 4.0, 4.0))
    assert (z.low, z.high, z.low_cut, z.high_cut, z.apart) == (8, 28, False, False, 256)


def test_parts_that_are_both_large_are_one_brain():
    data = cuboid((40, 45, 20))
    data[:, :, 14:16] = 0
    _, _, z = brain_sides(data != 0, (4.0, 4.0, 4.0))
    assert (z.low, z.high, z.apart) == (8, 28, 0)


@pytest.mark.parametrize(("thick", "cut"), [(1.0, True), (2.0, False)])
def test_a_full_plane_at_the_border_is_a_cut_and_one_as_full_as_a_round_end_s_is_not(thick, cut):
    brain = np.zeros((60, 70, 60), bool)
    brain[10:50, 10:60, 5:55] = True
    brain[:, :, -5:] = False
    brain[15:45, 15:60, -5:] = True  # 1350 mm^2: of a plane of 1 mm more than a round end has
    (_, _, z) = brain_sides(brain, (1.0, 1.0, thick))
    assert (z.low, z.high, z.low_cut, z.high_cut) == (5, 60, False, cut)
    (_, _, z) = brain_sides(brain[:, :, ::-1], (1.0, 1.0, thick))
    assert (z.low, z.high, z.low_cut, z.high_cut) == (0, 55, cut, False)


def test_the_axial_scale_is_the_geometric_mean_of_the_others_and_a_cut_axis_takes_the_other_s():
    whole, cut = ((of((40, 40, 20), at=at)[2]) for at in ((8, 8, 8), (0, 8, 8)))
    x, y = STANDARD_WIDTH / 160, STANDARD_LENGTH / 160
    assert find_scale((4.0, 4.0, 4.0), whole) == pytest.approx((x, y, (x * y) ** 0.5))
    assert find_scale((4.0, 4.0, 4.0), cut) == pytest.approx((y, y, y))
    _, _, both = of((60, 70, 20), at=(0, 0, 8))
    assert find_scale((4.0, 4.0, 4.0), both) == (1, 1, 1)


def ends(axis, low, high):
    """Where the faces of a brain's first and last voxel come to lie."""
    return axis.scale * (low - 0.5) + axis.offset, axis.scale * (high - 0.5) + axis.offset


def test_a_brain_has_its_middle_in_the_middle_a_standard_size_and_its_top_at_a_standard_height():
    given, brain, _ = of((40, 46, 20))
    x, y, z = place(given, brain, GridConfig()).axes
    for axis, size, high in ((x, STANDARD_WIDTH, 48), (y, STANDARD_LENGTH, 54)):
        assert ends(axis, 8, high) == pytest.approx((MIDDLE - size / 2, MIDDLE + size / 2))
    assert ends(z, 8, 28)[1] == pytest.approx(STANDARD_TOP)


@pytest.mark.parametrize(("at", "low_cut"), [(0, True), (20, False)])
def test_a_brain_cut_off_at_a_side_is_placed_by_its_other_side(at, low_cut):
    given, brain, _ = of((40, 46, 20), at=(at, 8, 8))
    x = place(given, brain, GridConfig()).axes[0]
    low, high = ends(x, at, at + 40)
    kept, expected = (high, MIDDLE + STANDARD_WIDTH / 2) if low_cut else (low, MIDDLE - STANDARD_WIDTH / 2)
    assert kept == pytest.approx(expected)


def test_a_brain_cut_off_at_both_sides_is_placed_by_its_middle():
    given, brain, _ = of((40, 46, 20), shape=(40, 70, 60), at=(0, 8, 8))
    assert sum(ends(place(given, brain, GridConfig()).axes[0], 0, 40)) == pytest.approx(2 * MIDDLE)


@pytest.mark.parametrize(("size", "scale"), [((60, 70, 30), 0.8), ((20, 26, 20), 1.25)])
def test_no_brain_is_scaled_beyond_the_limits(size, scale):
    given, brain, _ = of(size, shape=(64, 74, 60), at=(2, 2, 8))
    assert [axis.scale for axis in place(given, brain, GridConfig()).axes] == pytest.approx([4 * scale] * 3)


@pytest.mark.parametrize(
    ("depth", "scale", "offset"), [(182, 1, -24), (183, 1, -43), (96, 1, 0), (48, 2, 0.5), (40, 2.4, 0.7)]
)
def test_the_published_window_is_cut_from_the_registered_volume_or_the_middle_of_another(depth, scale, offset):
    data = np.zeros((182, 218, depth), np.float32)
    x, y, z = place(volume(data), data != 0, PAPER_GRID).axes
    assert [(axis.scale, axis.offset) for axis in (x, y)] == [(1, 5), (1, -13)]
    assert (z.scale, z.offset) == pytest.approx((scale, offset))
