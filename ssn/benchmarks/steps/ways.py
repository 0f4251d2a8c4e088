"""Ways to compute the same map: as it is usually done, as the product does it, and what it might do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssn.benchmarks.runners import choose_engines, open_slices
from ssn.benchmarks.steps.brain_box import Box, cut_to_box
from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, Bundle, ModelSpec, write_bundle
from ssn.core.intensity import normalise
from ssn.core.scoring import cell_scores, smooth_map
from ssn.core.slices import SliceStack
from ssn.core.volume import Volume, read_volume
from ssn.runtime.backend import DEFAULT_BATCH, Backend, StageTimes, run_batches

Draw = Callable[[Path], NDArray[np.float32]]


@dataclass(frozen=True)
class Way:
    """A way to compute a map.

    Attributes
    ----------
    all_slices : of the canonical grid, not only those with brain
    all_cells : not only those with brain
    scipy_map : upsample, smooth and resample voxel by voxel instead of by three matrices
    brain_box : of the canonical grid, only the rectangle with brain in it
    int8 : the encoder in 8-bit integers, but for what they would ruin
    batch : slices at once
    """

    engine: str = "onnxruntime"
    all_slices: bool = False
    all_cells: bool = False
    scipy_map: bool = False
    brain_box: bool = False
    int8: bool = False
    batch: int = DEFAULT_BATCH
    threads: int = 1


@contextmanager
def open_way(way: Way, bundle: Bundle, scan: Path, folder: Path, box: Box) -> Iterator[Draw]:
    """Make what a way needs and open its engine; gives a function from a volume's file to its map.

    Parameters
    ----------
    scan : whose slices calibrate 8-bit integers
    folder : for bundles that are made
    box : holds the brain of every volume that will be asked for
    """
    if way.int8:
        bundle = quantised(bundle, scan, folder)
    if way.brain_box:
        bundle = cut_to_box(bundle, box, folder)
    with open_slices(choose_engines([way.engine])[0], bundle, None, way.threads) as backend:
        yield partial(compute_map, way, bundle, backend, box=box if way.brain_box else None)


def quantised(bundle: Bundle, scan: Path, folder: Path) -> Bundle:
    """Make the same bundle with an encoder in 8-bit integers, calibrated on this scan's slices."""
    from ssn.export.int8 import quantise, sensitive_convolutions
    from ssn.export.precision import read_model

    spec = bundle.spec
    stack = spec.cut(read_volume(scan))
    chosen = stack.by_window[::4].reshape(-1, *stack.slices.shape[1:])
    encoder = read_model(bundle.read(ENCODER_FILE))
    encoder = quantise(encoder, [chosen], sensitive_convolutions(encoder), symmetric=False)
    graphs = {ENCODER_FILE: encoder.SerializeToString(), FLOW_FILE: bundle.read(FLOW_FILE)}
    return write_bundle(folder / "int8", spec, graphs, bundle.calibration, {}, overwrite=True)


def compute_map(way: Way, bundle: Bundle, backend: Backend, scan: Path, box: Box | None = None) -> NDArray[np.float32]:
    """Map (X, Y, Z) of a volume from its file, in one way; `box` is what bundle and backend were cut to."""
    spec, calibration = bundle.spec, bundle.calibration
    volume = read_volume(scan)
    stack = spec.cut(volume)
    wanted = stack.occupied_places(spec.occupancy)
    if way.all_slices:
        stack = _with_all_slices(stack, volume, spec)
    # At an occupancy of 0 every cell of every window is computed. Empty slices with only occupied cells would be
    # skipped as whole windows, so `all_slices` goes with `all_cells`.
    seen = stack if box is None else box.cut(stack)
    least = 0.0 if way.all_cells else spec.occupancy
    places, values = run_batches(backend, seen, least, way.batch, StageTimes())
    if box is not None:
        places = box.places_in_grid(places, spec.cells)
    kept = np.isin(places, wanted, assume_unique=True)
    scores = cell_scores(values[kept], places[kept], calibration)
    draw = plain_smooth_map if way.scipy_map else smooth_map
    return draw(scores, places[kept], stack, calibration.sigma) * np.float32(calibration.gain)


def _with_all_slices(stack: SliceStack, volume: Volume, spec: ModelSpec) -> SliceStack:
    grid = spec.grid
    slices = stack.placement.to_canonical(normalise(volume, stack.brain, spec.normalisation), thick=spec.thick)
    occupancy = np.zeros((grid.windows, *stack.occupancy.shape[1:]), np.float32)
    occupancy[stack.first : stack.first + len(stack.occupancy)] = stack.occupancy
    return replace(stack, slices=slices, occupancy=occupancy, first=0)


def plain_smooth_map(
    values: NDArray[np.float32], places: NDArray[np.int64], stack: SliceStack, sigma: float
) -> NDArray[np.float32]:
    """Do what `ssn.core.scoring.smooth_map` does as it is usually done: zoom, Gaussian, affine, voxel by voxel."""
    from scipy import ndimage

    shape, grid = stack.occupancy.shape, stack.placement.grid
    index = places - stack.first * shape[1] * shape[2]
    planes = []
    for filling in (values, np.ones_like(values)):
        cells = np.zeros(stack.occupancy.size, np.float32)
        cells[index] = filling
        zooms = (grid.window, grid.plane / shape[1], grid.plane / shape[2])
        fine = ndimage.zoom(cells.reshape(shape), zooms, order=1, mode="nearest", grid_mode=True)
        fine = ndimage.gaussian_filter(fine, sigma).transpose(2, 1, 0)
        scale = np.array([axis.scale for axis in stack.placement.axes])
        offset = np.array([axis.offset for axis in stack.placement.axes])
        offset[2] -= stack.first * grid.window
        planes.append(
            ndimage.affine_transform(fine, scale, offset, stack.brain.shape, np.float32, order=1, mode="nearest")
        )
    value, weight = planes
    result = np.zeros_like(value)
    np.divide(value, weight, out=result, where=stack.brain & (weight > 0.02))
    return result
