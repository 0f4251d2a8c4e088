"""`ssn-train check-data`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ssn.cli.console import progress_bar, user_errors
from ssn.cli.options import ContrastOption, Data, LayoutOption

if TYPE_CHECKING:
    from ssn.train.data_report import DataReport


def check_data(
    data: Data,
    layout: LayoutOption = None,
    contrast: ContrastOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List what a data set holds, and what is missing or broken; exit code 1 if anything is.

    Reads every file to its end, so that hours of training don't end in the last one.
    """
    with user_errors():
        from ssn.train.data_report import check_data as run

        with progress_bar() as bar:
            task = bar.add_task("files", total=None)
            report = run(
                data, layout, contrast, lambda done, total: bar.update(task, completed=done, total=total)
            )  # fmt: skip
        if as_json:
            import json

            typer.echo(json.dumps(report.as_json(), indent=1))
        else:
            _print(report)
        for problem in report.problems:
            typer.echo(f"Error: {problem}", err=True)
        if report.problems:
            raise typer.Exit(1)


def _print(report: DataReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{report.root} (layout {report.layout})"), show_header=False)
    for label, value in report.summary().items():
        shown = "\n".join(f"{count}: {name}" for name, count in value.items()) if isinstance(value, dict) else value
        table.add_row(label.replace("_", " "), escape(str(shown)))
    console = Console()
    console.print(table)
    for note in report.notes:
        console.print(f"Note: {note}", markup=False, highlight=False, soft_wrap=True)
    if not report.problems:
        console.print("Nothing is missing or broken.")
