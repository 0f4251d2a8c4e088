"""`ssn-export`: turn a checkpoint into a bundle and a bundle into engines, and look into both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ssn.cli.calibrate import calibrate, volume_threshold
from ssn.cli.console import needing_onnx, reporting, user_errors
from ssn.cli.options import VersionOption

if TYPE_CHECKING:
    from ssn.core.bundle import Bundle
    from ssn.core.engine_record import EngineEntry
    from ssn.export.check import Row

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.callback()
def main(
    version: VersionOption = False,
) -> None:
    """Turn a checkpoint into a bundle and a bundle into engines, and look into both."""


@app.command()
def onnx(
    checkpoint: Annotated[Path, typer.Argument(help="Folder written by ssn-train fit and calibrate.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to write.")],
    name: Annotated[str, typer.Option(help="Name of the model; the folder's name if not given.")] = "",
    modality: Annotated[str, typer.Option(help="Contrast that it was trained on.")] = "t1",
    check_on: Annotated[list[Path], typer.Option(help="Volumes to compare with torch on; else the demo's.")] = [],  # noqa: B006
    accuracy: Annotated[Path | None, typer.Option(help="JSON of ssn-bench accuracy, to be recorded.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an older bundle.")] = False,
) -> None:
    """Export encoder and flow to ONNX, compare them with torch, and write a bundle."""
    with user_errors():
        from ssn.benchmarks.results import OURS, read_accuracy
        from ssn.core.bundle import refuse_existing_bundle
        from ssn.core.errors import ResultsError
        from ssn.core.volume import read_volume
        from ssn.export.onnx import export_bundle
        from ssn.runtime.backend import plan_batches
        from ssn.runtime.packaged import DEMO_VOLUME
        from ssn.train.calibrate import load_calibration
        from ssn.train.checkpoint import load_checkpoint
        from ssn.train.features import SLICES_AT_ONCE, stack_for
        from ssn.train.trained import model_digests

        detector = load_checkpoint(checkpoint)
        calibration = load_calibration(checkpoint)
        measured = read_accuracy(accuracy)
        about = {}
        if measured:
            of = measured[OURS].get("model")
            if of and of != model_digests(checkpoint):
                raise ResultsError(f"{accuracy}: is of another model, or {checkpoint} has changed; measure it anew")
            about = {"accuracy": measured[OURS]["summary"]}
        refuse_existing_bundle(output, overwrite=force)
        real = []
        for path in check_on or [DEMO_VOLUME]:
            stack = stack_for(detector.network, read_volume(path))
            batches = list(plan_batches(stack, detector.config.occupancy, SLICES_AT_ONCE))
            real.append(batches[len(batches) // 2])
        with reporting() as report:
            report("exporting, and comparing with torch", 0, 1)
            bundle = export_bundle(
                detector,
                calibration,
                output,
                name=name or output.resolve().name,
                modality=modality,
                real=real,
                about=about,
                overwrite=force,
            )
        parity = bundle.manifest["parity"]["log_likelihood_per_dimension"]
        typer.echo(f"{output}: written; ONNX Runtime equals torch to {parity:.1e} in log-likelihood per dimension")


@app.command()
def build_engine(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; the engines are written into it.")],
    precision: Annotated[Literal["fp16", "fp32", "int8"], typer.Option(help="What the engines compute in.")] = "fp16",
    max_batch: Annotated[int, typer.Option(help="Most slices at once.", min=1, max=4096)] = 48,
    workspace: Annotated[
        int | None, typer.Option(help="Most scratch memory of an engine, MB.", min=1, max=2**20)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="GPU to build for: current, any, or sm86 and its like (TensorRT-RTX only).")
    ] = None,
    volume: Annotated[
        list[Path], typer.Option(help="Healthy volumes to measure the drift on, and INT8's ranges; else the demo's.")
    ] = [],  # noqa: B006
    force: Annotated[bool, typer.Option("--force", help="Replace the same engines.")] = False,
) -> None:
    """Build TensorRT engines, after proving that their maps stay what they were."""
    with user_errors(), needing_onnx():
        from ssn.core.bundle import load_bundle
        from ssn.export.build import BuildOptions, build_engines
        from ssn.export.parity import prepare
        from ssn.runtime.cuda import find_device
        from ssn.runtime.packaged import DEMO_HEALTHY_VOLUME, DEMO_VOLUME

        opened = load_bundle(bundle)
        device, _ = find_device()
        samples = [prepare(opened, path) for path in volume or [DEMO_HEALTHY_VOLUME, DEMO_VOLUME]]
        with reporting() as report:
            folder, record = build_engines(
                opened,
                samples,
                BuildOptions(precision, max_batch, workspace, target),
                healthy=samples if volume else samples[:1],
                device=device,
                overwrite=force,
                report=report,
            )
        drift = record.build["drift"]
        kept = sum(len(names) for names in record.build["kept_in_fp32"].values())
        seconds = sum(engine["seconds"] for engine in record.build["engines"].values())
        typer.echo(
            f"{folder}: built in {seconds:.1f} s by {record.key.builder} {record.key.builder_version}; {precision} "
            f"maps differ by at most {drift['map_z']:.2g} z, log-likelihoods by {drift['log_likelihood']:.2g}; "
            f"{kept} nodes kept in FP32"
        )


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    volume: Annotated[list[Path], typer.Option(help="Volumes to compare on; the demo's if not given.")] = [],  # noqa: B006
    mask: Annotated[list[Path], typer.Option(help="Their lesion masks, in the same order.")] = [],  # noqa: B006
    checkpoint: Annotated[Path | None, typer.Option(help="Folder written by ssn-train: compare torch too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare every backend at hand with ONNX Runtime on the CPU, on the same slices."""
    if mask and len(mask) != len(volume):
        raise typer.BadParameter("give a mask for each volume, in the same order", param_hint="--mask")
    with user_errors(), needing_onnx():
        import json
        from dataclasses import asdict
        from itertools import zip_longest

        from ssn.core.bundle import load_bundle
        from ssn.export.check import check_bundle
        from ssn.export.parity import TOLERANCES, as_record, prepare
        from ssn.runtime.packaged import DEMO_HEALTHY_VOLUME, DEMO_VOLUME

        opened = load_bundle(bundle)
        paths = volume or [DEMO_VOLUME, DEMO_HEALTHY_VOLUME]
        samples = [prepare(opened, *pair) for pair in zip_longest(paths, mask)]
        with reporting() as report:
            rows = check_bundle(opened, samples, checkpoint, report)
        if as_json:
            tolerances = {precision: asdict(tolerance) for precision, tolerance in TOLERANCES.items()}
            found = {"measured_on": as_record(samples), "tolerances": tolerances, "backends": [asdict(r) for r in rows]}
            typer.echo(json.dumps(found, indent=1))
        else:
            _print_check(rows)
        for row in rows:
            if row.beyond:
                typer.echo(f"Error: {row.name}: {'; '.join(row.beyond)}", err=True)
        if any(row.beyond for row in rows):
            raise typer.Exit(1)


def _print_check(rows: list[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ssn.export.parity import TOLERANCES

    table = Table(title="difference from onnxruntime on cpu", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("backend", overflow="fold", min_width=16)
    for column in ("log p\nmax", "log p\nmean", "corre-\nlation", "map, z", "Dice", "AUROC", "result"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        if row.drift is None:
            continue
        drift = row.drift
        table.add_row(
            row.name,
            f"{drift.log_likelihood:.1e}",
            f"{drift.log_likelihood_mean:.1e}",
            f"{drift.correlation:.5f}",
            f"{drift.map_z:.1e}",
            "-" if drift.dice is None else f"{drift.dice:.4f}",
            "-" if drift.auroc is None else f"{drift.auroc:.1e}",
            "-" if row.remark else "BEYOND" if row.beyond else "ok",
        )
    Console().print(table)
    for precision in dict.fromkeys(row.precision for row in rows if row.drift is not None):
        allowed = TOLERANCES[precision]
        typer.echo(
            f"allowed in {precision}: log p {allowed.log_likelihood:g}, map {allowed.map_z:g} z, "
            f"Dice {allowed.dice:g}, AUROC {allowed.auroc:g}"
        )
    for row in rows:
        if row.problem is not None:
            typer.echo(f"not run: {row.name}: {row.problem}")
        elif row.remark is not None:
            typer.echo(f"not held to that: {row.name}: {row.remark}")


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
            typer.echo(json.dumps({**opened.manifest, "sha256": opened.digest, "engines": records}, indent=1))
        else:
            _print_bundle(opened, engines)
        for problem in problems:
            typer.echo(f"Error: {problem}", err=True)
        if problems:
            raise typer.Exit(1)


def _print_bundle(opened: Bundle, engines: list[tuple[EngineEntry, str | None]]) -> None:
    """Print a bundle as a table; `engines` with what is wrong with each."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ssn.core.atomic import printable

    spec, calibration = opened.spec, opened.calibration
    grid = f"{spec.grid.plane} x {spec.grid.plane} x {spec.grid.depth} mm, windows of {spec.grid.window} slices"
    rows = {
        "name": printable(spec.name),
        "modality": spec.modality,
        "grid": grid + (" (published window)" if spec.grid.paper else ""),
        "map cells": f"{spec.cells} x {spec.cells} x {spec.grid.windows}, {spec.features} features",
        "encoder": opened.encoder_name or "?",
        "map threshold": f"{calibration.threshold:.2f} ({calibration.threshold_rate:.2%} of healthy brain above)",
        "volume threshold": volume_threshold(calibration),
        "calibrated for": "volumes each aligned by its own features"
        if calibration.aligned_to_itself
        else "volumes as they are",
        "calibrated on voxels of": f"{calibration.voxel_mm:.3g} mm" if calibration.voxel_mm else "not recorded",
        "intended use": str(opened.manifest["intended_use"]),
        "SHA-256": opened.digest,
    }
    table = Table(title=escape(printable(opened.folder)), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for label, value in rows.items():
        table.add_row(label, escape(value))
    for name, entry in opened.manifest["files"].items():
        table.add_row(escape(name), f"{entry['bytes'] / 1e6:.2f} MB, hash verified")
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
    with user_errors():
        from ssn.cli.doctor import print_doctor
        from ssn.runtime.packaged import DEFAULT_BUNDLE

        print_doctor(bundle or DEFAULT_BUNDLE, as_json=as_json)


app.command()(calibrate)
