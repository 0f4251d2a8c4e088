"""The commands of `ssn-bench` that compare the slice pipeline with 3D networks, and what is made of their results."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssn.cli.console import measuring, user_errors
from ssn.cli.options import SliceModel, SliceModels, ThreadsOption, refuse_idle

if TYPE_CHECKING:
    from ssn.benchmarks.suite import Suite


class What(StrEnum):
    """A quantity that a claim is about; typer takes no list of literals."""

    net = "net"
    file = "file"
    memory = "memory"


Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the results; made if missing.")]
EngineNames = Annotated[
    list[str] | None,
    typer.Option("--engine", help="What computes; several times for several. A wrong name lists them all."),
]
Against = Annotated[
    list[str] | None,
    typer.Option("--against", help="A 3D network; several times for several. All if not given."),
]
ModelChoice = Annotated[SliceModels, typer.Option(help="Slice pipeline.")]
Native = Annotated[bool, typer.Option("--native", help="A volume of 240 x 240 x 155, not 192 x 192 x 96.")]
AskedRatio = Annotated[float, typer.Option("--ratio", help="How many times faster it is asked to be.", min=0)]
AskedMemoryRatio = Annotated[float, typer.Option("--memory-ratio", help="How many times smaller in memory.", min=0)]
AccuracyFile = Annotated[
    Path | None, typer.Option("--accuracy", help="JSON of ssn-bench accuracy, to stand beside speed.")
]
AblationFile = Annotated[
    Path | None, typer.Option("--ablation", help="ablation.json of ssn-train ablate, for steps that need training.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing results.")]


def latency(
    context: typer.Context,
    output: Output = Path("results"),
    engine: EngineNames = None,
    against: Against = None,
    model: ModelChoice = "all",
    threads: ThreadsOption = None,
    minutes: Annotated[float, typer.Option(help="Time for all rounds together; 0: as long as it takes.", min=0)] = 15,
    rounds: Annotated[int, typer.Option(help="Rounds that are enough.", min=3)] = 20,
    ratio: Annotated[
        float, typer.Option(help="Rounds are repeated, while time lasts, where this many times faster is undecided.")
    ] = 3.3,
    full: Annotated[bool, typer.Option("--full", help="Time heavy networks on the whole volume.")] = False,
    variants: Annotated[
        bool, typer.Option("--variants", help="Measure the steps that make the product fast, and nothing else.")
    ] = False,
    native: Native = False,
    force: Force = False,
) -> None:
    """Time slice pipelines against 3D networks on the same volume, in the same engine, in interleaved rounds.

    Writes latency.json, or variants.json. A network whose rounds do not fit into the time is timed once.
    """
    if variants:
        refuse_idle(context, "with --variants", "engine", "against", "rounds", "ratio", "full", "native")
    with user_errors():
        from ssn.benchmarks.suite import run_latency, run_variants

        suite = _suite(output, engine, against, model, threads, native, force)
        limit = minutes or None
        with measuring() as tell:
            if variants:
                path = run_variants(suite, minutes=limit, tell=tell)
            else:
                path = run_latency(suite, minutes=limit, rounds=rounds, full=full, decides=ratio, tell=tell)
        typer.echo(f"{path}: written")


def memory(
    output: Output = Path("results"),
    engine: EngineNames = None,
    against: Against = None,
    model: ModelChoice = "all",
    threads: ThreadsOption = None,
    longest: Annotated[float, typer.Option(help="Seconds after which a process is given up.", min=1)] = 600,
    native: Native = False,
    force: Force = False,
) -> None:
    """Measure peak memory and cold start: one volume, file to file, in a fresh process for each method.

    Writes memory.json.
    """
    with user_errors():
        from ssn.benchmarks.suite import run_memory

        suite = _suite(output, engine, against, model, threads, native, force)
        with measuring() as tell:
            path = run_memory(suite, longest=longest, tell=tell)
        typer.echo(f"{path}: written")


def throughput(
    output: Output = Path("results"),
    model: ModelChoice = "compact",
    threads: ThreadsOption = None,
    volumes: Annotated[int, typer.Option(help="Volumes of a cohort.", min=1)] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds.", min=3)] = 3,
    native: Native = False,
    force: Force = False,
) -> None:
    """Time a cohort with reading, computing and writing overlapped, and each of them alone; memory by volumes.

    Writes throughput.json.
    """
    with user_errors():
        from ssn.benchmarks.suite import run_throughput

        suite = _suite(output, None, None, model, threads, native, force)
        with measuring() as tell:
            path = run_throughput(suite, volumes=volumes, rounds=rounds, tell=tell)
        typer.echo(f"{path}: written")


def claim(
    results: Annotated[Path, typer.Argument(help="Folder of results.")],
    against: Against = None,
    engine: EngineNames = None,
    model: Annotated[SliceModel, typer.Option(help="Slice pipeline.")] = "compact",
    ratio: AskedRatio = 3.3,
    memory_ratio: AskedMemoryRatio = 1.0,
    of: Annotated[
        list[What] | None,
        typer.Option(
            help="What must hold: networks alone, file to file, memory. Whatever of it was measured if not given."
        ),
    ] = None,
) -> None:
    """Say, baseline by baseline, whether the slice pipeline is so many times faster and smaller.

    Exit code 0: it holds for every baseline stated; 1: it does not, or is undecided, for at least one.
    """
    with user_errors():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from ssn.benchmarks.claim import QUANTITIES, check_claim, holds
        from ssn.benchmarks.results import load_results, reading_results

        with reading_results(results):
            found = check_claim(
                load_results(results),
                model,
                ratio=ratio,
                memory_ratio=memory_ratio,
                against=against or (),
                engines=engine or (),
            )
        asked = of or {finding.quantity for finding in found}
        wanted = tuple(quantity for quantity in QUANTITIES if quantity in asked)
        for group in dict.fromkeys(finding.group for finding in found):
            table = Table(
                "against", "engine", "what", "wanted", "how many times, and verdict", title=f"{model}: {group}s"
            )
            for one in found:
                if one.group == group and one.quantity in wanted:
                    cells = (one.method, one.engine, one.quantity, f"{one.wanted:g}x", one.line())
                    table.add_row(*(escape(cell) for cell in cells))
            Console(width=160).print(table)
        verdict = holds(found, wanted, against or (), engine or ())
        typer.echo("The claim holds." if verdict else "The claim does not hold, or is undecided, for at least one.")
        if not verdict:
            raise typer.Exit(1)


def report(
    results: Annotated[Path, typer.Argument(help="Folder of results.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="report.html or report.md.")] = Path("report.html"),
    accuracy: AccuracyFile = None,
    ablation: AblationFile = None,
    ratio: AskedRatio = 3.3,
    memory_ratio: AskedMemoryRatio = 1.0,
    force: Force = False,
) -> None:
    """Write one self-contained report: charts, tables, the claim, environment and raw data."""
    with user_errors():
        from ssn.benchmarks.pages.rendering import as_html, as_markdown
        from ssn.benchmarks.pages.report import build_sections
        from ssn.benchmarks.results import load_results, read_ablation, read_accuracy, reading_results
        from ssn.core.atomic import write_text_atomic
        from ssn.core.errors import BackendError, OutputError, installing

        if output.suffix not in (".html", ".md"):
            raise OutputError(f"{output}: a report is HTML or Markdown; end the name in .html or .md")
        found = load_results(results)
        as_page = output.suffix == ".html"
        measured, ablated = read_accuracy(accuracy), read_ablation(ablation)
        try:
            with reading_results(results):
                sections = list(
                    build_sections(
                        found,
                        ratio=ratio,
                        memory_ratio=memory_ratio,
                        accuracy=measured,
                        ablation=ablated,
                        charts=as_page,
                    )
                )
        except ModuleNotFoundError as error:
            raise BackendError(f"charts need {error.name}: {installing('bench')}; or write a .md") from error
        render = as_html if as_page else as_markdown
        write_text_atomic(output, render(sections, found, "Slice pipeline and 3D networks"), overwrite=force)
        typer.echo(f"{output}: written")


def performance(
    results: Annotated[Path, typer.Argument(help="Folder of results.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Markdown file.")] = Path("performance.md"),
    accuracy: AccuracyFile = None,
    ablation: AblationFile = None,
    ratio: AskedRatio = 3.3,
    memory_ratio: AskedMemoryRatio = 1.0,
    force: Force = False,
) -> None:
    """Write docs/performance.md: the claim, and every step with its time before and after."""
    with user_errors():
        from ssn.benchmarks.pages.performance import performance_page
        from ssn.benchmarks.results import load_results, read_ablation, read_accuracy, reading_results
        from ssn.core.atomic import write_text_atomic

        measured, ablated = read_accuracy(accuracy), read_ablation(ablation)
        with reading_results(results):
            page = performance_page(
                load_results(results),
                name=output.name,
                ratio=ratio,
                memory_ratio=memory_ratio,
                accuracy=measured,
                ablation=ablated,
            )
        write_text_atomic(output, page, overwrite=force)
        typer.echo(f"{output}: written")


def _suite(
    output: Path,
    engine: list[str] | None,
    against: list[str] | None,
    model: SliceModels,
    threads: int | None,
    native: bool,
    force: bool,
) -> Suite:
    from ssn.benchmarks.runners import DEFAULT_ENGINES
    from ssn.benchmarks.slice_models import MODELS
    from ssn.benchmarks.suite import Suite
    from ssn.runtime.machine import cores

    return Suite(
        output,
        models=MODELS if model == "all" else (model,),
        engines=tuple(engine or DEFAULT_ENGINES),
        against=tuple(against or ()),
        threads=threads or cores(),
        native=native,
        overwrite=force,
    )
