"""Result files: a folder with one JSON a kind of measurement. The claim, the report and the documentation read it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from ssn.core.errors import OutputError, ResultsError
from ssn.core.outputs import make_folder

Results = Mapping[str, Mapping[str, Any]]  # by kind, what was measured
Kind = Literal["latency", "memory", "throughput", "variants"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OURS = "ssn"  # what ssn-bench accuracy calls the detector that it was given


def result_path(folder: Path, kind: Kind, *, overwrite: bool) -> Path:
    """Path of a result file in a folder, which is made.

    Raises
    ------
    OutputError
        If it exists and is not to be overwritten, or the folder cannot be made.
    """
    path = folder / f"{kind}.json"
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; use --force to replace it, or another folder")
    make_folder(folder)
    return path


def load_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Read what a folder holds: kind -> result.

    Raises
    ------
    ResultsError
        If it holds none, or one is damaged.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        path = folder / f"{kind}.json"
        if path.exists():
            found[kind] = read_json(path)
            if not isinstance(found[kind].get("environment"), dict):
                raise ResultsError(f"{path}: is not a result of ssn-bench {kind}; measure it again")
            if found[kind].get("rows") == []:
                raise ResultsError(f"{path}: was cut off before anything was measured; measure it again")
    if not found:
        names = ", ".join(f"{kind}.json" for kind in KINDS)
        raise ResultsError(f"{folder}: holds none of {names}; make them with ssn-bench latency, memory or throughput")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    ResultsError
        If it is missing or damaged.
    """
    found = _read(path)
    if not isinstance(found, dict):
        raise ResultsError(f"{path}: is no JSON object; measure it again")
    return found


def read_accuracy(path: Path | None) -> dict[str, Any] | None:
    """Read the JSON of ssn-bench accuracy, by method; None without a path.

    Raises
    ------
    ResultsError
        If it is missing, damaged or another JSON.
    """
    if path is None:
        return None
    found = read_json(path)
    own = found.get(OURS)
    if not isinstance(own, dict) or not isinstance(own.get("summary"), dict):
        what = "that of ssn-train evaluate" if {"threshold", "summary", "volumes"} <= set(found) else "another JSON"
        raise ResultsError(f"{path}: is {what}; give the JSON of ssn-bench accuracy")
    return found


def read_ablation(path: Path | None) -> list[dict[str, Any]]:
    """Read the rows of ssn-train ablate's JSON; none without a path.

    Raises
    ------
    ResultsError
        If it is missing, damaged or another JSON.
    """
    if path is None:
        return []
    found = _read(path)
    if not isinstance(found, list) or not all(
        isinstance(row, dict) and {"question", "arm", "auprc"} <= set(row) for row in found
    ):
        raise ResultsError(f"{path}: is no ablation.json of ssn-train ablate")
    return found


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: cannot be read as JSON ({error}); measure it again") from error


@contextmanager
def reading_results(folder: Path) -> Iterator[None]:
    """Say in one line that results are not as ssn-bench writes them, wherever that shows.

    Raises
    ------
    ResultsError
        With what did not fit.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ResultsError(
            f"{folder}: its results are incomplete, damaged or of another version ({what}); measure again"
        ) from error


def rows_of(results: Mapping[str, Mapping[str, Any]], kind: Kind) -> Iterator[dict[str, Any]]:
    """Rows of a kind of measurement; none if it was not made."""
    yield from results.get(kind, {}).get("rows", ())
