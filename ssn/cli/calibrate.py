"""`ssn-export calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssn.cli.console import progress_bar, user_errors
from ssn.cli.options import BackendOption, BatchOption, DeviceOption, ThreadsOption

if TYPE_CHECKING:
    from ssn.core.scoring import Calibration

FEWEST_TO_TELL = 19  # healthy volumes from which on a p-value, 1 / (1 + 19) at least, can be 5 %


def calibrate(
    healthy: Annotated[
        list[Path],
        typer.Argument(metavar="HEALTHY...", help="Healthy skull-stripped NIfTI volumes, or folders of them."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to write.")],
    model: Annotated[
        Path | None, typer.Option(help="Bundle to calibrate, which stays as it is; the packaged T1 model if not given.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the model; the folder's name if not given.")] = "",
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    batch: BatchOption = None,
    threads: ThreadsOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an older bundle.")] = False,
) -> None:
    """Calibrate a bundle on healthy volumes of your own scanner, without training and without torch.

    Writes a bundle with the same graphs, and with mean and spread of the log-likelihood at each place, threshold and
    healthy volume scores of your volumes.
    """
    with user_errors():
        from ssn.core.bundle import load_bundle, refuse_existing_bundle
        from ssn.core.engines import find_engines, rebuild_command
        from ssn.core.errors import SsnError
        from ssn.runtime.backend import DEFAULT_BATCH
        from ssn.runtime.calibrate import calibrate_on, write_calibrated
        from ssn.runtime.choose import Request, open_backend
        from ssn.runtime.jobs import find_volumes
        from ssn.runtime.packaged import DEFAULT_BUNDLE

        opened = load_bundle(model or DEFAULT_BUNDLE)
        paths = find_volumes(healthy)
        refuse_existing_bundle(output, overwrite=force)
        choice = open_backend(opened, Request(backend, device, threads, batch))
        for warning in choice.warnings:
            typer.echo(f"Warning: {warning}", err=True)

        def refused(error: SsnError) -> None:
            typer.echo(f"Error: {error}", err=True)

        with choice.backend as runner, progress_bar() as bar:
            task = bar.add_task("healthy volumes", total=len(paths))
            calibration, record = calibrate_on(
                paths,
                opened,
                runner,
                batch=batch or runner.max_slices or DEFAULT_BATCH,
                refused=refused,
                doubted=lambda line: typer.echo(f"Warning: {line}", err=True),
                progress=lambda done: bar.update(task, completed=done),
            )
        engines = find_engines(opened)
        write_calibrated(output, opened, calibration, record, name=name or output.resolve().name, overwrite=force)
        share = f"{calibration.threshold_rate:.2%} of healthy brain above it"
        typer.echo(
            f"{output}: map threshold {calibration.threshold:.2f} ({share}), "
            f"volume threshold {volume_threshold(calibration)}"
        )
        for entry in engines:
            precision = entry.record.key.precision if entry.record else "fp16"
            typer.echo(f"Engine {entry.folder.name} is not in it; build it: {rebuild_command(output, precision)}")


def volume_threshold(calibration: Calibration) -> str:
    """Say what the volume threshold is, and whether there are volumes enough for what it stands for."""
    count = calibration.healthy_scores.size
    text = f"{calibration.volume_threshold:.2f}"
    if count < FEWEST_TO_TELL:
        return (
            f"{text} (the highest of {count} healthy volumes). Fewer than {FEWEST_TO_TELL} volumes cannot tell 5 %: "
            f"one healthy volume in {count + 1} is above it"
        )
    return f"{text} (above it p is 0.05 or less, by {count} healthy volumes)"
