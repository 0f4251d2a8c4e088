"""The comparison of `ssn-bench accuracy`: every method on the same volumes, to JSON, table and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssn.benchmarks.accuracy.kept import Kept, load_measured, save_measured
from ssn.benchmarks.accuracy.measured import Splits
from ssn.benchmarks.accuracy.methods import Build
from ssn.benchmarks.accuracy.pictures import choose_slices, draw_curves, draw_montage, write_figure
from ssn.benchmarks.accuracy.table import markdown
from ssn.benchmarks.accuracy.workers import Make, Measured, measure_at_once, measure_in_turn
from ssn.benchmarks.measure import Tell
from ssn.core.atomic import write_json_atomic, write_text_atomic
from ssn.core.errors import OutputError
from ssn.core.outputs import check_file
from ssn.train.cases import Case
from ssn.train.datasets import open_healthy, read_dataset
from ssn.train.trained import model_digests


def output_files(output: Path) -> dict[str, Path]:
    """Files that a comparison writes, by what they hold; all beside the JSON."""
    stem = output.with_suffix("").name
    return {
        "json": output,
        "table": output.with_name(f"{stem}.md"),
        "curves": output.with_name(f"{stem}-curves.png"),
        "montage": output.with_name(f"{stem}-montage.png"),
    }


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse, before any computing, what a comparison could not be written to.

    Raises
    ------
    OutputError
        If the JSON would have the name of the table or of a picture, or one of them exists or can't be written.
    """
    files = output_files(output)
    if len(set(files.values())) < len(files):
        raise OutputError(f"{output}: is the name of the table; give the JSON's, {output.with_suffix('.json')}")
    for path in files.values():
        check_file(path, overwrite=overwrite)


def open_controls(paths: Sequence[Path], contrast: str | None = None) -> dict[str, list[Case]]:
    """Healthy volumes of each control data set, by its folder's name, or by its path where two have one name.

    Parameters
    ----------
    contrast : to take of a data set that has several; one of another contrast is a control too

    Raises
    ------
    DataError
        If one can't be used, or has no healthy volume.
    """
    names = [path.resolve().name for path in paths]
    found = {}
    for name, path in zip(names, paths, strict=True):
        several = len({case.contrast for case in read_dataset(path).cases}) > 1
        key = name if names.count(name) == 1 else str(path)
        found[key] = open_healthy(path, contrast if several else None)
    return found


def compare(
    make: Make,
    splits: Splits,
    output: Path,
    tell: Tell,
    processes: int = 1,
    kept: Kept | None = None,
    models: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Measure the methods and write everything; existing files are replaced.

    The JSON is written anew after each method: what is cut off leaves what it measured.

    Parameters
    ----------
    make : says how to make each method, in the order of the table
    processes : methods that are measured at once
    kept : methods that were measured before are taken from there, and the others added
    models : folders of those methods that are trained models, which the JSON tells by their digests

    Returns
    -------
    What the JSON holds: by method, thresholds, summary, pooled areas, controls, seconds and volumes.

    Raises
    ------
    DataError
        If a kept file is damaged, or the volumes can't be used (`measure`).
    """
    files = output_files(output)
    shown = choose_slices(splits.test)
    places = {item.case.name: item.index for item in shown}
    builds = make(tell)
    found: dict[str, Measured] = {}
    results: dict[str, Any] = {}
    told = {name: {"model": model_digests(folder)} for name, folder in (models or {}).items()}
    for one in _each(make, builds, splits, places, tell, processes, kept):
        found[one.name] = one
        found = {name: found[name] for name in builds if name in found}
        results = {
            name: told.get(name, {}) | own.accuracy.as_json() | {"seconds": dict(own.seconds)}
            for name, own in found.items()
        }
        write_json_atomic(files["json"], results, overwrite=True)
    measured = {name: own.accuracy for name, own in found.items()}
    write_text_atomic(files["table"], markdown(results), overwrite=True)
    write_figure(files["curves"], draw_curves(measured))
    write_figure(files["montage"], draw_montage(shown, measured))
    return results


def _each(
    make: Make,
    builds: Mapping[str, Build],
    splits: Splits,
    places: Mapping[str, int],
    tell: Tell,
    processes: int,
    kept: Kept | None,
) -> Iterator[Measured]:
    """Yield each method: first those that were measured before, then the others as they are done."""
    paths = kept.paths(splits, places) if kept else {}
    before = [name for name in builds if name in paths and paths[name].exists()]
    for name in before:
        yield load_measured(paths[name], name)
    missing = {name: build for name, build in builds.items() if name not in before}
    if processes == 1:
        methods = measure_in_turn(missing, splits, places, tell)
    else:
        methods = measure_at_once(make, list(missing), splits, places, tell, processes)
    for one in methods:
        if kept:
            save_measured(paths[one.name], one)
        yield one
