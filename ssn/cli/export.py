"""`ssn-export`: turn a checkpoint into a bundle, and look into bundles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssn.cli.console import print_version, user_errors

if TYPE_CHECKING:
    from ssn.core.bundle import Bundle
    from ssn.core.engines import EngineEntry

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turn a checkpoint into a bundle, and look into bundles."""


@app.command()
def onnx(
    checkpoint: Annotated[Path, typer.Argument(help="Folder written by ssn-train fit and calibrate.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to write.")],
    name: Annotated[str, typer.Option(help="Name of the model; the folder's name if not given.")] = "",
    modality: Annotated[str, typer.Option(help="Contrast that it was trained on.")] = "t1",
    check_on: Annotated[list[Path], typer.Option(help="Volumes to compare torch and ONNX Runtime on.")] = [],  # noqa: B006
    accuracy: Annotated[Path | None, typer.Option(help="JSON of ssn-bench accuracy, to be recorded.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an older bundle.")] = False,
) -> None:
    """Export encoder and flow to ONNX, compare them with torch, and write a bundle."""
    with user_errors():
        import json

        from ssn.core.errors import DataError
        from ssn.export.onnx import export_bundle
        from ssn.train.calibrate import load_calibration
        from ssn.train.checkpoint import load_checkpoint
        from ssn.train.features import SLICES_AT_ONCE, stack_for

        detector = load_checkpoint(checkpoint)
        calibration = load_calibration(checkpoint)
        about = {}
        if accuracy is not None:
            try:
                about["accuracy"] = json.loads(accuracy.read_text())["ssn"]["summary"]
            except (OSError, ValueError, KeyError) as error:
                raise DataError(f"{accuracy}: is not a result of ssn-bench accuracy ({error})") from error
        slices = []
        for path in check_on:
            whole = stack_for(detector.network, path).slices
            middle = len(whole) // 2 // detector.config.grid.window * detector.config.grid.window
            slices.append(whole[middle : middle + SLICES_AT_ONCE])
        bundle = export_bundle(
            detector,
            calibration,
            output,
            name=name or output.resolve().name,
            modality=modality,
            slices=slices,
            about=about,
            overwrite=force,
        )
        parity = bundle.manifest["parity"]["log_likelihood_per_dimension"]
        typer.echo(f"{output}: written; ONNX Runtime equals torch to {parity:.1e} in log-likelihood per dimension")


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest, and the engines' records.")] = False,
) -> None:
    """Print what a bundle and its engines hold and verify every hash."""
    with user_errors():
        import json
        from dataclasses import asdict

        from ssn.core.bundle import load_bundle
        from ssn.core.engines import find_engines, verify_engine

        opened = load_bundle(bundle)
        for name in opened.manifest["files"]:
            opened.read(name)
        engines = [(entry, verify_engine(entry)) for entry in find_engines(opened)]
        problems = [problem for _, problem in engines if problem is not None]
        if as_json:
            records = [
                {"folder": entry.folder.name, "problem": problem, "record": entry.record and asdict(entry.record)}
                for entry, problem in engines
            ]
            typer.echo(json.dumps({**opened.manifest, "engines": records}, indent=1))
        else:
            _print_bundle(opened, engines)
        for problem in problems:
            typer.echo(f"Error: {problem}", err=True)
        if problems:
            raise typer.Exit(1)


def _print_bundle(opened: Bundle, engines: list[tuple[EngineEntry, str | None]]) -> None:
    """Print a bundle as a table; `engines` with what is wrong with each."""
    from rich.console import Console
    from rich.table import Table

    spec, calibration = opened.spec, opened.calibration
    grid = f"{spec.grid.plane} x {spec.grid.plane} x {spec.grid.depth} mm, windows of {spec.grid.window} slices"
    rows = {
        "name": spec.name,
        "modality": spec.modality,
        "grid": grid + (" (published window)" if spec.grid.paper else ""),
        "map cells": f"{spec.cells} x {spec.cells} x {spec.grid.windows}, {spec.features} features",
        "encoder": str(opened.manifest.get("architecture", {}).get("encoder", {}).get("name", "?")),
        "map threshold": f"{calibration.threshold:.2f} ({calibration.threshold_rate:.2%} of healthy brain above)",
        "volume threshold": f"{calibration.volume_threshold:.2f} "
        f"(5 % of {calibration.healthy_scores.size} healthy volumes above)",
        "intended use": str(opened.manifest["intended_use"]),
        "SHA-256": opened.digest,
    }
    table = Table(title=str(opened.folder), show_header=False)
    for label, value in rows.items():
        table.add_row(label, value)
    for name, entry in opened.manifest["files"].items():
        table.add_row(name, f"{entry['bytes'] / 1e6:.2f} MB, hash verified")
    for entry, problem in engines:
        size = sum(file["bytes"] for file in entry.record.files.values()) if entry.record else 0
        table.add_row(entry.folder.name, "REFUSED" if problem else f"{size / 1e6:.2f} MB, hashes verified")
    Console().print(table)


@app.command()
def doctor(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder; the packaged T1 model if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Say what this machine has, whether a bundle and its engines are whole, and what would run."""
    from ssn.cli.doctor import print_doctor
    from ssn.runtime.packaged import DEFAULT_BUNDLE

    print_doctor(bundle or DEFAULT_BUNDLE, as_json=as_json)
