"""Steps that make the product faster on a CPU, each measured against the step before on the same volume.

A step counts only at equal accuracy: beside its time stands how well its map agrees with the plain way's.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ssn.benchmarks.measure import Clock, Ratio, Spread, timed_rounds
from ssn.benchmarks.runners import choose_engines, engine_problem, open_slices
from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, Bundle, ModelSpec, write_bundle
from ssn.core.intensity import normalise
from ssn.core.scoring import cell_scores, smooth_map, volume_score
from ssn.core.slices import SliceStack
from ssn.core.volume import Volume, read_volume, write_map
from ssn.runtime.backend import DEFAULT_BATCH, Backend, StageTimes, run_batches

FEWEST, MOST = 5, 20  # rounds
_SAME_MAP = 0.999  # correlation of two maps from which on accuracy is the same
_SAME_SCORE = 0.01  # relative difference of volume scores up to which it is
DROPS_ACCURACY: Literal["drops accuracy"] = "drops accuracy"


@dataclass(frozen=True)
class Way:
    """A way to compute a map.

    Attributes
    ----------
    all_slices : of the canonical grid, not only those with brain
    all_cells : not only those with brain
    scipy_map : upsample, smooth and resample voxel by voxel instead of by three matrices
    int8 : the encoder in 8-bit integers, but for what they would ruin
    batch : slices at once
    """

    engine: str = "onnxruntime"
    all_slices: bool = False
    all_cells: bool = False
    scipy_map: bool = False
    int8: bool = False
    batch: int = DEFAULT_BATCH
    threads: int = 1


@dataclass(frozen=True)
class Step:
    """What changes from one way to another."""

    name: str
    before: Way
    after: Way


def steps(threads: int) -> list[Step]:
    """From the plain way to the product's, one change after the other; then what the product does not do by itself."""
    plain = Way(all_slices=True, all_cells=True, scipy_map=True, threads=threads)
    slices = replace(plain, all_slices=False)
    cells = replace(slices, all_cells=False)
    product = replace(cells, scipy_map=False)
    found = [
        Step("skip empty slices", plain, slices),
        Step("skip empty map cells", slices, cells),
        Step("map by three matrices", cells, product),
        Step("all steps together", plain, product),
        Step("OpenVINO instead of ONNX Runtime", product, replace(product, engine="openvino")),
        Step("OpenVINO in bfloat16", product, replace(product, engine="openvino bf16")),
        Step("8-bit encoder", product, replace(product, int8=True)),
        *(Step(f"{n} slices a batch", product, replace(product, batch=n)) for n in (12, 24, 48, 96)),
    ]
    if threads > 1:
        found.insert(4, Step(f"{threads} threads instead of 1", replace(product, threads=1), product))
    return found


def heavy_steps(threads: int) -> list[Step]:
    """Those of `steps` that say what the product saves of a heavy encoder: a round of it takes half a minute."""
    return [step for step in steps(threads) if step.name in ("all steps together", "OpenVINO in bfloat16")]


def measure_variants(
    bundle: Bundle,
    scan: Path,
    folder: Path,
    todo: Sequence[Step],
    *,
    minutes: float | None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[dict[str, Any]]:
    """Measure steps; yields a row each, with times from the file to the map and the agreement of both maps."""
    clock = Clock(minutes, len(todo))
    for step in todo:
        say(step.name)
        share = clock.share()
        problem = engine_problem(choose_engines([step.after.engine])[0])
        row: dict[str, Any] = {"step": step.name, "method": bundle.spec.name}
        if problem is not None:
            yield {**row, "problem": problem}
            continue
        try:
            yield {**row, **_compare(step, bundle, scan, folder, share)}
        except Exception as error:  # an engine may lack an operator that this step needs
            yield {**row, "problem": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _compare(step: Step, bundle: Bundle, scan: Path, folder: Path, share: float) -> dict[str, Any]:
    with ExitStack() as stack:
        maps: dict[str, NDArray[np.float32]] = {}
        runs = {}
        start = time.perf_counter()
        for name, way in (("before", step.before), ("after", step.after)):
            own = quantised(bundle, scan, folder) if way.int8 else bundle
            backend = stack.enter_context(open_slices(choose_engines([way.engine])[0], own, None, way.threads))
            maps[name] = compute_map(way, own, backend, scan)[0]
            runs[name] = partial(compute_map, way, own, backend, scan)
        warm = time.perf_counter() - start
        rounds = max(FEWEST, int(min((share - warm) / warm, MOST)))
        samples = timed_rounds(runs, rounds=rounds)
    before, after = (samples[name]["total"] for name in ("before", "after"))
    volume = read_volume(scan)
    inside = maps["before"] != 0
    scores = {name: volume_score(values, inside, volume.zooms) for name, values in maps.items()}
    correlation = float(np.corrcoef(maps["before"][inside], maps["after"][inside])[0, 1])
    return {
        "before": Spread.of(before).as_json(),
        "after": Spread.of(after).as_json(),
        "faster": Ratio.bootstrap(before, after).as_json(),
        "map_correlation": round(correlation, 6),
        "accuracy": accuracy_mark(correlation, scores["before"], scores["after"]),
        "largest_map_difference_z": round(float(np.abs(maps["before"] - maps["after"]).max()), 5),
        "volume_score_before": round(scores["before"], 4),
        "volume_score_after": round(scores["after"], 4),
    }


def accuracy_mark(correlation: float, before: float, after: float) -> Literal["kept", "drops accuracy"]:
    """Say whether a step changes what is found: its map, or the score of the volume.

    Parameters
    ----------
    correlation : of both maps inside the brain
    before, after : volume scores
    """
    kept = correlation >= _SAME_MAP and abs(after - before) <= _SAME_SCORE * abs(before)
    return "kept" if kept else DROPS_ACCURACY


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


def compute_map(way: Way, bundle: Bundle, backend: Backend, scan: Path) -> tuple[NDArray[np.float32], StageTimes]:
    """Map (X, Y, Z) of a volume from its file, in one way."""
    spec, calibration = bundle.spec, bundle.calibration
    volume = read_volume(scan)
    stack = spec.cut(volume)
    wanted = stack.occupied_places(spec.occupancy)
    if way.all_slices:
        stack = _with_all_slices(stack, volume, spec)
    times = StageTimes()
    # At an occupancy of 0 every cell of every window is computed. Empty slices with only occupied cells would be
    # skipped as whole windows, so `all_slices` goes with `all_cells`.
    places, values = run_batches(backend, stack, 0.0 if way.all_cells else spec.occupancy, way.batch, times)
    kept = np.isin(places, wanted, assume_unique=True)
    scores = cell_scores(values[kept], places[kept], calibration)
    draw = plain_smooth_map if way.scipy_map else smooth_map
    return draw(scores, places[kept], stack, calibration.sigma) * np.float32(calibration.gain), times


def _with_all_slices(stack: SliceStack, volume: Volume, spec: ModelSpec) -> SliceStack:
    grid = spec.grid
    slices = stack.placement.to_canonical(normalise(volume.data, stack.brain, spec.normalisation), thick=spec.thick)
    occupancy = np.zeros((grid.windows, *stack.occupancy.shape[1:]), np.float32)
    occupancy[stack.first : stack.first + len(stack.occupancy)] = stack.occupancy
    return SliceStack(slices, occupancy, 0, stack.placement, stack.brain)


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


def measure_files(scan: Path, folder: Path, rounds: int = 7) -> Iterator[dict[str, Any]]:
    """Measure reading and writing against the usual way, with nibabel and zlib."""
    volume = read_volume(scan)
    values = volume.data

    def read_plainly() -> None:
        np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(scan.read_bytes())).dataobj, np.float32)

    def write_plainly() -> None:
        nib.save(nib.Nifti1Image(values, volume.affine), folder / "plain.nii.gz")

    pairs: Mapping[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "read with isal, checks and hash included": (read_plainly, partial(read_volume, scan)),
        "write with isal": (
            write_plainly,
            lambda: write_map(folder / "fast.nii.gz", values, volume, overwrite=True),
        ),
    }
    for name, (before, after) in pairs.items():
        samples = timed_rounds({"before": before, "after": after}, rounds=rounds, warm_up=1)
        first, second = (samples[key]["total"] for key in ("before", "after"))
        yield {
            "step": name,
            "before": Spread.of(first).as_json(),
            "after": Spread.of(second).as_json(),
            "faster": Ratio.bootstrap(first, second).as_json(),
        }
