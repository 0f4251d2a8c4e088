import numpy as np
import pytest
from scipy import ndimage

from ssn.core.geometry import (
    AxisMap,
    GridConfig,
    Placement,
    apply_separable,
    gaussian_matrix,
    inward_matrix,
    outward_matrix,
    upsampling_matrix,
)
from ssn.core.scoring import parity_map


@pytest.mark.parametrize("sigma", [0.7, 2.0, 4.0, 9.0])
def test_the_gaussian_matrix_is_scipys_gaussian_filter(sigma):
    values = np.random.default_rng(0).normal(size=50)
    expected = ndimage.gaussian_filter1d(values, sigma)
    np.testing.assert_allclose(gaussian_matrix(50, sigma) @ values, expected, atol=1e-12)


def test_a_gaussian_of_no_width_changes_nothing():
    np.testing.assert_array_equal(gaussian_matrix(5, 0), np.eye(5))


def test_the_upsampling_matrix_is_torchs_half_pixel_interpolation():
    torch = pytest.importorskip("torch")
    values = torch.randn(1, 1, 24, dtype=torch.float64)
    expected = torch.nn.functional.interpolate(values, size=192, mode="linear", align_corners=False)[0, 0]
    np.testing.assert_allclose(upsampling_matrix(192, 24) @ values[0, 0].numpy(), expected.numpy(), atol=1e-12)


def test_one_matrix_an_axis_equals_trilinear_upsampling_then_scipys_gaussian():
    torch = pytest.importorskip("torch")
    cells = np.random.default_rng(1).normal(size=(32, 24, 24)).astype(np.float32)
    upsampled = torch.nn.functional.interpolate(
        torch.from_numpy(cells)[None, None], size=(96, 192, 192), mode="trilinear", align_corners=False
    )[0, 0].numpy()
    expected = ndimage.gaussian_filter(upsampled, 4.0)
    axes = tuple(AxisMap(n, 1.0, 0.0) for n in (192, 192, 96))
    grid = GridConfig(plane=192, depth=96)
    slabs = list(Placement(grid, axes).native_slabs(np.stack([cells, 2 * cells]), 0, 4.0))
    assert len(slabs) > 1 and np.array_equal(np.r_[tuple(slab for slab, _ in slabs)], np.arange(192))
    first, second = np.concatenate([maps for _, maps in slabs], axis=2)
    np.testing.assert_allclose(first.transpose(2, 1, 0), expected, atol=1e-4)
    np.testing.assert_allclose(second, 2 * first, atol=1e-4)


def test_smoothing_uncrop_and_resampling_in_one_matrix_equal_the_steps_one_by_one():
    # A native axis of 100 voxels of 1.7 mm that begins 13.2 mm before the canonical one.
    axis = AxisMap(100, 1.7, -13.2)
    cells = np.random.default_rng(2).normal(size=48)
    smooth = ndimage.gaussian_filter1d(upsampling_matrix(192, 48) @ cells, 3.0)
    places = (1.7 * np.arange(100) - 13.2).clip(0, 191)
    expected = np.interp(places, np.arange(192), smooth)
    values = outward_matrix(axis, 0, 192, 48, 3.0) @ cells
    np.testing.assert_allclose(values[3:], expected[3:], atol=1e-4)
    np.testing.assert_array_equal(values[:3], 0, err_msg="farther outside than the Gaussian reaches: 9.5 mm")


def test_cells_of_a_part_of_the_depth_reach_as_far_as_the_gaussian_on_both_sides():
    axis = AxisMap(100, 1.7, -13.2)
    found = outward_matrix(axis, 60, 90, 10, 2.0) @ np.ones(10)
    places = 1.7 * np.arange(100) - 13.2
    reached = (places >= 60 - 6.5) & (places <= 89 + 6.5)
    np.testing.assert_allclose(found, reached, atol=1e-5)


def test_a_map_in_the_native_grid_is_one_matrix_an_axis_of_a_gaussian_in_millimetres():
    axes = (AxisMap(40, 2.3, 1.0), AxisMap(50, 1.9, -3.0), AxisMap(30, 1.6, 2.0))
    maps = np.random.default_rng(5).normal(size=(2, 7, 12, 12)).astype(np.float32)
    slabs = Placement(GridConfig(plane=96, depth=48), axes).native_slabs(maps, 4, 2.5)
    found = np.concatenate([part for _, part in slabs], axis=2)
    along = (outward_matrix(axis, 0, 96, 12, 2.5) for axis in axes[:2])
    expected = np.einsum("nzyx,ax,by,cz->nabc", maps, *along, outward_matrix(axes[2], 12, 33, 7, 2.5))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("native", [20, 400])
def test_voxels_are_seen_whose_centres_lie_in_the_grid(native):
    grid = GridConfig(plane=96, depth=48)
    axes = (AxisMap(native, 0.8, -7.3), AxisMap(native, 1.3, 4.0), AxisMap(native, 1.0, -9.5))
    for axis, side, size in zip(axes, Placement(grid, axes).seen, (96, 96, 48), strict=True):
        centres = axis.scale * np.arange(native) + axis.offset
        assert list(range(native)[side]) == list(np.flatnonzero((centres >= -0.5) & (centres <= size - 0.5)))
        assert side.start >= 0, "a negative index would count from the end"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 3, (0, 1)),
        (0, 4, (0, 2)),
        (2, 9, (0, 3)),
        (3, 9, (1, 3)),
        (-8, 500, (0, 16)),
        (-30, -20, (0, 1)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_window_is_computed_when_it_has_a_part_of_a_brain_s_voxels(low, high, expected, scale):
    """`low` and `high` are faces of the brain, from the grid's own first face on."""
    grid, voxels = GridConfig(plane=96, depth=48), round(1 / scale)
    depth = AxisMap(600 * voxels, scale, 0.5 * scale - 0.5 - 40)
    box = (slice(0, 1), slice(0, 1), slice((low + 40) * voxels, (high + 40) * voxels))
    assert Placement(grid, (depth, depth, depth)).windows_with(box) == expected


def test_a_thick_voxel_reaches_into_windows_on_both_sides_of_its_centre():
    depth = AxisMap(20, 4.0, 1.5)  # from the grid's own first face on
    box = (slice(0, 1), slice(0, 1), slice(2, 4))  # 8 to 16 mm
    assert Placement(GridConfig(plane=96, depth=48), (depth, depth, depth)).windows_with(box) == (2, 6)


def test_resampling_in_at_equal_voxel_size_is_a_crop():
    matrix = inward_matrix(AxisMap(20, 1.0, -4.0), 0, 10)
    np.testing.assert_array_equal(matrix, np.eye(20)[4:14])


def test_resampling_in_interpolates_linearly_and_is_zero_outside():
    values = np.arange(10.0)
    result = inward_matrix(AxisMap(10, 2.0, 5.0), 0, 40) @ values
    places = (np.arange(40) - 5.0) / 2
    expected = np.interp(places, np.arange(10), values)
    expected[(places < -0.5) | (places > 9.5)] = 0
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_small_native_voxels_are_averaged_not_skipped():
    matrix = inward_matrix(AxisMap(400, 0.5, 0.0), 10, 180)
    assert (matrix.sum(0)[30:350] > 0.4).all(), "every native voxel inside the crop has its share"
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)


def test_separable_application_is_an_einsum():
    rng = np.random.default_rng(3)
    volume = rng.normal(size=(5, 6, 7)).astype(np.float32)
    matrices = tuple(rng.normal(size=(m, n)).astype(np.float32) for m, n in ((9, 5), (3, 6), (8, 7)))
    expected = np.einsum("abc,xa,yb,zc->xyz", volume, *matrices)
    np.testing.assert_allclose(apply_separable(volume, matrices), expected, rtol=1e-4, atol=1e-4)


def test_the_published_map_is_kept_for_comparison():
    values = np.random.default_rng(4).normal(-1.5, 0.2, (32, 24, 24)).astype(np.float32)
    result = parity_map(values, (96, 192, 192), 4.0)
    assert result.shape == (96, 192, 192)
    assert result.min() == 0
    assert result.max() == 1


@pytest.mark.parametrize("bad", [{"plane": 190}, {"depth": 100, "window": 3}, {"plane": 0}])
def test_an_impossible_grid_is_refused(bad):
    with pytest.raises(ValueError, match="grid"):
        GridConfig(**bad)
