"""The printing that `ssn-export doctor` and `ssn-infer --doctor` share."""

from __future__ import annotations

import json
from pathlib import Path

import typer


def print_doctor(bundle: Path, *, as_json: bool) -> None:
    """Print what this machine and a bundle have, and what would run; where nothing would, the exit code is 1."""
    from ssn.runtime.doctor import as_lines, diagnose

    report = diagnose(bundle)
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        lines = as_lines(report)
        width = max(len(what) for what, _ in lines)
        for what, said in lines:
            typer.echo(f"{what:<{width}}  {said}")
    if report["would_run"] is None:
        raise typer.Exit(1)
