"""`ssn-export calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ssn.cli.console import progress_bar, user_errors
from ssn.cli.options import BackendOption, BatchOption, DeviceOption, ThreadsOption

if TYPE_CHECKING:
    from ssn.core.bundle import Bundle
    from ssn.core.scoring import Calibration
    from ssn.runtime.backend import Backend, FeatureBackend

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
    modality: Annotated[
        str, typer.Option(help="Contrast of the volumes, if another than the model's: t2, for example.")
    ] = "",
    align: Annotated[
        bool,
        typer.Option(
            "--align/--no-align",
            help="Bring the volumes' features towards mean and covariance of those that the model was trained on.",
        ),
    ] = True,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    batch: BatchOption = None,
    threads: ThreadsOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an older bundle.")] = False,
) -> None:
    """Calibrate a bundle on healthy volumes of your own scanner, without training and without torch.

    Writes a bundle whose features are aligned with your volumes, and with mean and spread of the log-likelihood at each
    place, threshold and healthy volume scores of theirs; all else of its graphs stays.
    """
    with user_errors():
        from dataclasses import replace

        from ssn.core.bundle import load_bundle, refuse_existing_bundle
        from ssn.core.engines import find_engines, rebuild_command
        from ssn.core.errors import BackendError, SsnError
        from ssn.runtime.align import SHARE, measure_alignment, read_whitening
        from ssn.runtime.calibrate import calibrate_on, of_contrast, write_calibrated
        from ssn.runtime.choose import Request, open_backend
        from ssn.runtime.jobs import find_volumes
        from ssn.runtime.packaged import DEFAULT_BUNDLE

        given = load_bundle(model or DEFAULT_BUNDLE)
        opened = of_contrast(given, modality) if modality else given
        paths = find_volumes(healthy)
        refuse_existing_bundle(output, overwrite=force)
        whitening = read_whitening(opened) if align else None
        if align and whitening is None:
            typer.echo("Warning: the model does not whiten all its features, so they are not aligned", err=True)
        if whitening and backend == "tensorrt":
            raise BackendError("an aligned flow has no engine yet; leave out --backend, or give --no-align")
        # By itself it would try engines, which an aligned flow has none of, and say so for each fold.
        chosen = "onnxruntime" if whitening and backend == "auto" else backend
        request = Request(chosen, device, threads, batch)

        def refused(error: SsnError) -> None:
            typer.echo(f"Error: {error}", err=True)

        def open_runner(bundle: Bundle, request: Request = request) -> Backend:
            choice = open_backend(bundle, request)
            for warning in choice.warnings:
                typer.echo(f"Warning: {warning}", err=True)
            return choice.backend

        with progress_bar() as bar:
            alignment = None
            if whitening:
                task = bar.add_task("features", total=len(paths))
                with open_runner(opened, replace(request, align=False)) as runner:
                    alignment = measure_alignment(
                        paths,
                        opened,
                        whitening,
                        cast("FeatureBackend", runner),  # it aligns nothing itself, and so it is one
                        share=SHARE if opened is given else 1.0,
                        batch=batch,
                        refused=refused,
                        progress=lambda done: bar.update(task, completed=done),
                    )
            run = bar.add_task("healthy volumes", total=len(paths))
            calibration, record = calibrate_on(
                paths,
                opened,
                open_runner,
                alignment=alignment,
                batch=batch,
                refused=refused,
                doubted=lambda line: typer.echo(f"Warning: {line}", err=True),
                progress=lambda done: bar.update(run, completed=done),
            )
        engines = find_engines(opened)
        source = alignment.aligned() if alignment else opened
        write_calibrated(output, source, calibration, record, name=name or output.resolve().name, overwrite=force)
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
