"""`ssn-infer`: anomaly maps of brain MRI volumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssn.cli.console import progress_bar, user_errors
from ssn.cli.options import BackendOption, BatchOption, DeviceOption, ThreadsOption, VersionOption

if TYPE_CHECKING:
    from ssn.runtime.jobs import Job, Outcome

_MOST_Z = 1e6

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _deviations(threshold: float | None) -> float | None:
    """Typer callback: the word "nan" is a number to the parser, and so is one that no map can hold."""
    if threshold is not None and not abs(threshold) <= _MOST_Z:
        raise typer.BadParameter("give a number of standard deviations")
    return threshold


@app.command(no_args_is_help=True)
def infer(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="INPUT...", help="Skull-stripped NIfTI volumes, or folders of them.", readable=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to; made if missing.")] = Path("OUT"),
    model: Annotated[Path | None, typer.Option(help="Model bundle; the packaged T1 model if not given.")] = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    batch: BatchOption = None,
    memory_limit: Annotated[
        int | None, typer.Option(metavar="MB", help="GPU memory that may be used; it lowers the batch.", min=1)
    ] = None,
    threads: ThreadsOption = None,
    threshold: Annotated[
        float | None, typer.Option(help="Mask threshold, z; the model's own if not given.", callback=_deviations)
    ] = None,
    align: Annotated[
        bool | None,
        typer.Option(
            "--align/--no-align",
            help="Bring each volume's features, by their own mean and covariance, towards those that the model was "
            "trained on, because its scanner is another; as the model's threshold is for, if not given.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing outputs.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what an interrupted run finished in the same way, and do the rest.")
    ] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Run the packaged demo volume.")] = False,
    no_png: Annotated[bool, typer.Option("--no-png", help="Write no picture.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON lines.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say what computes, and why.")] = False,
    doctor: Annotated[bool, typer.Option("--doctor", help="Say what this machine has and what would run.")] = False,
    version: VersionOption = False,
) -> None:
    """Find what is abnormal in 3D brain MRI.

    Writes, for each volume, NAME_anomaly.nii.gz (z-scores against healthy volumes), NAME_mask.nii.gz, NAME.json
    and NAME.png. Research use only.
    """
    if doctor and (inputs or demo):
        raise typer.BadParameter("computes nothing; leave INPUT out", param_hint="--doctor")
    if force and resume:
        raise typer.BadParameter("--force replaces what --resume keeps; give one of them", param_hint="--resume")
    if doctor:
        with user_errors():
            from ssn.cli.doctor import print_doctor
            from ssn.runtime.packaged import DEFAULT_BUNDLE

            print_doctor(model or DEFAULT_BUNDLE, as_json=as_json)
        return
    if bool(inputs) == demo:
        raise typer.BadParameter("give INPUT, or --demo", param_hint="INPUT")
    with user_errors():
        from ssn.core.bundle import load_bundle
        from ssn.runtime.backend import DEFAULT_BATCH
        from ssn.runtime.choose import Request, open_backend
        from ssn.runtime.cohort import run_jobs, volumes_at_once
        from ssn.runtime.jobs import find_jobs, is_folder
        from ssn.runtime.memory import MEGABYTE
        from ssn.runtime.overview import overview_paths
        from ssn.runtime.packaged import DEFAULT_BUNDLE, DEMO_VOLUME

        given = [DEMO_VOLUME] if demo else inputs or []
        jobs = find_jobs(given)
        several = len(jobs) > 1 or any(is_folder(path) for path in given)
        bundle = load_bundle(model or DEFAULT_BUNDLE)
        limit = None if memory_limit is None else memory_limit * MEGABYTE
        at_once = volumes_at_once(len(jobs), threads)
        choice = open_backend(bundle, Request(backend, device, threads, batch, limit, at_once, align))
        for warning in choice.warnings:
            typer.echo(f"Warning: {warning}", err=True)
        if verbose:
            for line in choice.passed_over:
                typer.echo(f"Not used: {line}", err=True)
            if choice.measured:
                typer.echo(f"On the CPU: {choice.measured}", err=True)
            typer.echo(f"Computes: {choice.label}", err=True)

        with choice.backend as runner, progress_bar() as bar:
            volumes = bar.add_task("volumes", total=len(jobs))

            def started(job: Job) -> None:
                bar.update(volumes, description=job.path.name)

            def progress(share: float) -> None:
                done = int(bar.tasks[0].completed)
                bar.update(volumes, completed=min(done + share, done + 0.99))

            def finished(outcome: Outcome) -> None:
                count = int(bar.tasks[0].completed) + 1
                bar.update(volumes, completed=count)
                _tell(outcome, output, as_json=as_json, alone=len(jobs) == 1)

            outcomes = run_jobs(
                jobs,
                output,
                bundle,
                runner,
                threshold=threshold,
                batch=batch or runner.max_slices or DEFAULT_BATCH,
                picture=not no_png,
                overwrite=force,
                overview=several,
                resume=resume,
                started=started,
                progress=progress,
                finished=finished,
            )
        if several:
            typer.echo(_total(outcomes, overview_paths(output, pictures=not no_png)[-1]), err=True)
        if any(outcome.error for outcome in outcomes):
            raise typer.Exit(1)


def _tell(outcome: Outcome, folder: Path, *, as_json: bool, alone: bool) -> None:
    """Print what a volume gave."""
    import json

    from ssn.core.atomic import printable

    record = outcome.record
    if record is None:
        typer.echo(f"Error: {outcome.error}", err=True)
        return
    for doubt in record["input"]["doubts"]:
        typer.echo(f"Warning: {printable(outcome.job.path)}: {doubt}", err=True)
    if as_json:
        typer.echo(json.dumps(record))
        return
    volume, found = record["volume"], record["map"]
    verdict = "ABOVE the range of healthy volumes" if volume["abnormal"] else "within the range of healthy volumes"
    # Volumes of a cohort overlap, so that one alone has no time of its own.
    took = f"; {outcome.seconds:.1f} s" if alone else ""
    typer.echo(
        f"{printable(record['input']['name'])}: score {volume['score']:.2f}, {verdict} "
        f"(threshold {volume['threshold']:.2f}, p = {volume['p_value']:.3f}); "
        f"{found['above_threshold_ml']:.1f} ml above z {found['threshold_z']:.2f}{took} "
        f"-> {printable(folder / outcome.job.name)}_anomaly.nii.gz"
    )


def _total(outcomes: Sequence[Outcome], table: Path) -> str:
    from ssn.core.atomic import printable

    bad = sum(outcome.error is not None for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    line = f"{len(outcomes)} volume{'s' if len(outcomes) > 1 else ''} in {seconds:.1f} s"
    if bad:
        line += f", {bad} of them with an error"
    return line if bad == len(outcomes) else f"{line}: {printable(table)}"
