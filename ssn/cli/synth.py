"""`ssn-train synth`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ssn.cli.console import progress_bar, user_errors


def synth(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    train: Annotated[int, typer.Option(help="Healthy subjects to train on.", min=0)] = 160,
    calibration: Annotated[int, typer.Option(help="Healthy subjects to calibrate on.", min=0)] = 40,
    validation: Annotated[
        int, typer.Option(help="Subjects to choose thresholds on, 4 in 5 with a lesion.", min=0)
    ] = 40,
    test: Annotated[int, typer.Option(help="Subjects to measure on, 4 in 5 with a lesion.", min=0)] = 60,
    contrast: Annotated[Literal["t1", "t2", "flair"], typer.Option(help="Contrast.")] = "t1",
    template: Annotated[
        str, typer.Option(help="What subjects are made from: icbm152, sri24, or a healthy, skull-stripped T1 scan.")
    ] = "icbm152",
    slice_mm: Annotated[int, typer.Option(help="Thickness of the axial slices, in mm.", min=1, max=10)] = 1,
    tilt: Annotated[
        int,
        typer.Option(help="Degrees by which each head is turned in its grid, besides its own few.", min=0, max=45),
    ] = 0,
    seed: Annotated[
        int,
        typer.Option(
            help="Another seed makes other people; with other sizes the same seed makes the same, in other splits.",
            min=0,
            max=2**31 - 1,
        ),
    ] = 1,
    workers: Annotated[int, typer.Option(help="Processes.", min=1)] = 2,
) -> None:
    """Make a synthetic cohort: images, exact lesion masks, and cohort.csv."""
    with user_errors():
        from ssn.core.atomic import printable
        from ssn.train.layouts import stem
        from ssn.train.synthetic import plan_cohort, write_cohort
        from ssn.train.templates import TEMPLATES

        sizes = {"train": train, "calibration": calibration, "validation": validation, "test": test}
        scan = None if template in TEMPLATES else Path(template)
        records = plan_cohort(sizes, contrast, printable(stem(scan)) if scan else template, seed, slice_mm, tilt)
        with progress_bar() as bar:
            task = bar.add_task("subjects", total=len(records))
            table = write_cohort(
                output,
                records,
                scan=scan,
                workers=workers,
                doubted=lambda line: typer.echo(f"Warning: {line}", err=True),
                progress=lambda done: bar.update(task, completed=done),
            )
        typer.echo(f"{len(records)} subjects: {table}")
