"""A volume's outputs on disk: their names, and that they are written all or not at all."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ssn import __version__
from ssn.core.atomic import atomic_together, check_target, write_json_atomic
from ssn.core.bundle import Bundle
from ssn.core.hashed_files import file_sha256
from ssn.core.outputs import make_folder
from ssn.core.volume import write_map
from ssn.runtime.backend import ALIGNED, Backend
from ssn.runtime.own import refuse_foreign, remove_own
from ssn.runtime.result import Result, as_record

OUTPUT_SUFFIXES = ("_anomaly.nii.gz", "_mask.nii.gz", ".json", ".png")


def output_paths(folder: Path, name: str, *, picture: bool = True) -> list[Path]:
    """Paths of a volume's outputs."""
    return [folder / f"{name}{suffix}" for suffix in OUTPUT_SUFFIXES if picture or suffix != ".png"]


def finished_record(
    path: Path, bundle: Bundle, backend: Backend, folder: Path, name: str, *, threshold: float | None, picture: bool
) -> dict[str, Any] | None:
    """Return the record of a volume whose outputs are all there, of this very file, bundle, threshold and version.

    What computed it does not matter, but whether that aligned its features does.
    """
    paths = output_paths(folder, name, picture=picture)
    if not all(output.is_file() for output in paths):
        return None
    try:
        record: dict[str, Any] = json.loads(paths[2].read_text(encoding="utf-8"))
        level = bundle.calibration.threshold if threshold is None else threshold
        made_of = (
            record["input"]["sha256"],
            record["bundle"]["sha256"],
            record["map"]["threshold_z"],
            record["version"],
            record["backend"].get(ALIGNED),
        )
        aligned = backend.describe().get(ALIGNED)
        wanted = (file_sha256(path), bundle.digest, round(level, 4), __version__, aligned)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if made_of == wanted else None


def write_outputs(
    result: Result,
    bundle: Bundle,
    backend: Backend,
    folder: Path,
    name: str,
    *,
    picture: bool = True,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `NAME_anomaly.nii.gz`, `NAME_mask.nii.gz`, `NAME.png` and `NAME.json`: all, or none.

    Returns the JSON's contents.

    Raises
    ------
    OutputError
        If an output exists and is not to be overwritten or not ours, or can't be written.
    """
    paths = output_paths(folder, name, picture=picture)
    for path in paths:  # all of them, before the first is replaced
        check_target(path, overwrite=overwrite)
    refuse_foreign(paths)
    make_folder(folder)
    with atomic_together(overwrite=overwrite) as held:
        start = time.perf_counter()
        write_map(paths[0], result.score_map, result.volume, overwrite=overwrite, held=held)
        write_map(paths[1], result.mask, result.volume, overwrite=overwrite, held=held)
        result.times.add("write", time.perf_counter() - start)
        if picture:
            from ssn.runtime.montage import write_montage

            start = time.perf_counter()
            write_montage(paths[3], result, bundle, overwrite=overwrite, held=held)
            result.times.add("picture", time.perf_counter() - start)
        record = as_record(result, bundle, backend)
        write_json_atomic(paths[2], record, overwrite=overwrite, held=held)
        if overwrite:  # it says that the others are whole and go together: the last, and first to go
            paths[2].unlink(missing_ok=True)
            if not picture:
                remove_own(output_paths(folder, name)[3])
    return record
