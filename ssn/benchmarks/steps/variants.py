"""Steps that make the product faster on a CPU, each measured against the step before on the same volume.

A step counts only at equal accuracy: beside its time stands how well its map agrees with the plain way's, and what both
find in volumes with lesions.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ssn.benchmarks.measure import Clock, Tell, reason_of, step_times, timed_rounds
from ssn.benchmarks.runners import choose_engines, engine_problem
from ssn.benchmarks.steps.brain_box import Box, box_of
from ssn.benchmarks.steps.lesioned import mean_auprc
from ssn.benchmarks.steps.ways import Way, open_way
from ssn.core.bundle import Bundle
from ssn.core.scoring import volume_score
from ssn.core.volume import read_volume, write_map
from ssn.train.cases import Case

FEWEST, MOST = 5, 20  # rounds


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
        Step("crop to the brain's box", product, replace(product, brain_box=True)),
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


@dataclass(frozen=True)
class Ground:
    """What all steps of a model are measured on.

    Attributes
    ----------
    scan : the volume that is timed
    folder : for what is made on the way
    lesioned : volumes whose AUPRC is measured; none for a model that has learned nothing
    """

    bundle: Bundle
    scan: Path
    folder: Path
    lesioned: Sequence[Case] = ()

    def box(self) -> Box:
        """Return the box that holds the brains of all its volumes."""
        paths = [self.scan, *(case.image for case in self.lesioned)]
        return box_of([self.bundle.spec.cut(read_volume(path)) for path in paths])


def measure_variants(
    ground: Ground,
    todo: Sequence[Step],
    *,
    minutes: float | None,
    tell: Tell = lambda what, step, steps: None,
) -> Iterator[dict[str, Any]]:
    """Measure steps; yields a row each, with times from the file to the map and what the step does to accuracy.

    `minutes` are for the times of all steps; the accuracy of each way is measured before.
    """
    box = ground.box()
    found: dict[Way, float] = {}
    problems: dict[str, str] = {}
    for index, step in enumerate(todo):
        problem = engine_problem(choose_engines([step.after.engine])[0])
        if problem is None and ground.lesioned:
            tell(f"{step.name}: {len(ground.lesioned)} volumes with lesions", index, len(todo))
            try:
                _measure_auprc(step, ground, box, found)
            except Exception as error:  # an engine may lack an operator that this step needs
                problem = reason_of(error)
        if problem is not None:
            problems[step.name] = problem
    clock = Clock(minutes, len(todo) - len(problems))
    for index, step in enumerate(todo):
        row: dict[str, Any] = {"step": step.name, "method": ground.bundle.spec.name}
        if step.name in problems:
            yield {**row, "problem": problems[step.name]}
            continue
        tell(step.name, index, len(todo))
        auprc = (found[step.before], found[step.after]) if ground.lesioned else None
        try:
            yield {**row, **_compare(step, ground, box, clock.share(), auprc)}
        except Exception as error:  # as above, where no lesion was looked for
            yield {**row, "problem": reason_of(error)}


def _measure_auprc(step: Step, ground: Ground, box: Box, found: dict[Way, float]) -> None:
    """Add the mean AUPRC of both of a step's ways, where it is not yet known."""
    for way in (step.before, step.after):
        if way not in found:
            with open_way(way, ground.bundle, ground.scan, ground.folder, box) as draw:
                found[way] = mean_auprc(ground.lesioned, draw)


def _compare(step: Step, ground: Ground, box: Box, share: float, auprc: tuple[float, float] | None) -> dict[str, Any]:
    with ExitStack() as stack:
        maps: dict[str, NDArray[np.float32]] = {}
        runs = {}
        start = time.perf_counter()
        for name, way in (("before", step.before), ("after", step.after)):
            draw = stack.enter_context(open_way(way, ground.bundle, ground.scan, ground.folder, box))
            maps[name] = draw(ground.scan)
            runs[name] = partial(draw, ground.scan)
        warm = time.perf_counter() - start
        rounds = max(FEWEST, int(min((share - warm) / warm, MOST)))
        samples = timed_rounds(runs, rounds=rounds)
    volume = read_volume(ground.scan)
    inside = maps["before"] != 0
    scores = {name: volume_score(values, inside, volume.voxel_ml) for name, values in maps.items()}
    correlation = float(np.corrcoef(maps["before"][inside], maps["after"][inside])[0, 1])
    row = {
        **step_times(samples),
        "map_correlation": round(correlation, 6),
        "largest_map_difference_z": round(float(np.abs(maps["before"] - maps["after"]).max()), 5),
        "volume_score_before": round(scores["before"], 4),
        "volume_score_after": round(scores["after"], 4),
    }
    if auprc is not None:
        row |= {"auprc_before": round(auprc[0], 4), "auprc_after": round(auprc[1], 4)}
        row["auprc_volumes"] = len(ground.lesioned)
    return row


def measure_files(scan: Path, folder: Path) -> Iterator[dict[str, Any]]:
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
        samples = timed_rounds({"before": before, "after": after}, rounds=7, warm_up=1)
        yield {"step": name, **step_times(samples)}
