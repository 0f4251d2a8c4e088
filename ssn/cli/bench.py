"""`ssn-bench`: measure accuracy against references, speed against 3D networks, and engines on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssn.cli import bench_speed
from ssn.cli.console import measuring, reporting, user_errors
from ssn.cli.options import (
    ContrastOption,
    Data,
    EncoderWeightsOption,
    GpuPart,
    LayoutOption,
    SliceModels,
    VersionOption,
    encoder_weights_named,
    refuse_idle,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.callback()
def main(
    version: VersionOption = False,
) -> None:
    """Measure accuracy against references, speed against 3D networks, and engines on a GPU."""


@app.command()
def accuracy(
    model: Annotated[Path, typer.Argument(help="A bundle, or a folder written by ssn-train fit and calibrate.")],
    data: Data,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="JSON file to write; table and pictures go beside it.")
    ] = Path("accuracy.json"),
    method: Annotated[
        list[str] | None,
        typer.Option(help="Method to compare with, or all; z-score and pca if none is given. May be repeated."),
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option(help="Another trained model, as NAME=MODEL. May be repeated.")
    ] = None,
    control: Annotated[
        list[Path] | None,
        typer.Option(help="Data set whose healthy volumes should not score like lesions. May be repeated."),
    ] = None,
    learned: Annotated[
        Path | None, typer.Option(help="Data set of the train, calibration and validation splits, if another.")
    ] = None,
    validation: Annotated[Path | None, typer.Option(help="Data set of the validation split, if yet another.")] = None,
    encoder_weights: EncoderWeightsOption = "imagenet",
    processes: Annotated[int, typer.Option(help="Methods that are measured at once.", min=1)] = 1,
    layout: LayoutOption = None,
    contrast: ContrastOption = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder to keep each method's result in: what is there is not measured again."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files.")] = False,
) -> None:
    """Measure a trained model and other methods on the same test volumes with the same code.

    Methods learn from the train split; peers have the model's kind of encoder and its slices. Every method has three
    Dice thresholds: of the healthy calibration split, the best on the validation split, and, marked as not to be
    used, the best on the test volumes themselves.
    """
    with user_errors():
        from functools import partial
        from itertools import chain

        from ssn.benchmarks.accuracy.kept import Kept, describe_methods
        from ssn.benchmarks.accuracy.measured import Splits
        from ssn.benchmarks.accuracy.methods import all_methods, choose_methods, peers_backbone, trained_models
        from ssn.benchmarks.accuracy.suite import check_output, compare, open_controls, output_files
        from ssn.core.outputs import check_folder
        from ssn.train.datasets import open_split, refuse_shared, refuse_without_lesion
        from ssn.train.evaluate import print_table
        from ssn.train.trained import calibration_of, refuse_trained

        check_output(output, overwrite=force)
        if cache:
            check_folder(cache)
        names = choose_methods(method)
        models = trained_models(model, also or ())
        backbone = peers_backbone(model, encoder_weights_named(encoder_weights), names)
        learned = learned or data
        validation = validation or learned
        # A forced layout is the first data set's; another lies as it lies.
        own_layout = layout if learned == data else None
        splits = Splits(
            calibration=open_split(learned, "calibration", own_layout, contrast),
            validation=open_split(validation, "validation", layout if validation == data else None, contrast),
            test=open_split(data, "test", layout, contrast),
            controls=open_controls(control or (), contrast),
        )
        learned_from = open_split(learned, "train", own_layout, contrast)
        learned_of = [*learned_from, *splits.calibration]
        measured_on = [*splits.validation, *splits.test, *chain(*splits.controls.values())]
        refuse_shared(learned_of, measured_on)
        refuse_shared(splits.validation, splits.test)
        for trained in models.values():
            refuse_trained(trained, [*splits.calibration, *measured_on])
        for cases in (splits.validation, splits.test):
            refuse_without_lesion(cases)
        train = [case.image for case in learned_from]
        given = (models, names, train, backbone, calibration_of(model).sigma)
        kept = Kept(cache, describe_methods(*given)) if cache else None
        with reporting() as tell:
            results = compare(partial(all_methods, *given), splits, output, tell, processes, kept, models)
        for name, result in results.items():
            print_table(name, result["summary"])
        for path in output_files(output).values():
            typer.echo(f"{path}: written")


@app.command()
def methods(
    method: Annotated[
        list[str] | None, typer.Option(help="Method, or all; z-score and pca if none is given. May be repeated.")
    ] = None,
) -> None:
    """List the methods that accuracy would compare with, or say what one of them lacks here."""
    with user_errors():
        from ssn.benchmarks.accuracy.methods import choose_methods

        typer.echo("\n".join(choose_methods(method)))


@app.command()
def gpu(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")] = Path("gpu.json"),
    model: Annotated[SliceModels, typer.Option(help="What is measured.")] = "all",
    part: Annotated[GpuPart, typer.Option(help="What computes.")] = "all",
    rounds: Annotated[int, typer.Option(help="Timed runs of a volume, of each way to compute.", min=1)] = 20,
    max_batch: Annotated[int, typer.Option(help="Slices a batch.", min=3)] = 48,
    networks: Annotated[bool, typer.Option("--networks-3d", help="Measure the 3D networks, and no model.")] = False,
    against: Annotated[
        list[str] | None, typer.Option(help="Of the 3D networks only these; may be given often.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the JSON file.")] = False,
) -> None:
    """Measure engines, streams, CUDA graphs and memory on this GPU, beside ONNX Runtime and torch.

    The models are made on the spot with random weights. What fails is recorded with its reason.
    """
    if networks:
        refuse_idle(context, "with --networks-3d", "model", "part", "max_batch")
    else:
        refuse_idle(context, "without --networks-3d", "against")
    with user_errors():
        from ssn.benchmarks.gpu.suite import PARTS, require_gpu, run_gpu_networks, run_gpu_suite
        from ssn.benchmarks.slice_models import MODELS
        from ssn.core.outputs import check_file

        require_gpu()
        check_file(output, overwrite=force)
        chosen = MODELS if model == "all" else (model,)
        parts = PARTS if part == "all" else (part,)
        with measuring() as tell:
            if networks:
                run_gpu_networks(output, against=against or (), rounds=rounds, tell=tell)
            else:
                run_gpu_suite(output, models=chosen, parts=parts, rounds=rounds, max_batch=max_batch, tell=tell)
        typer.echo(f"{output}: written")


@app.command()
def gpu_page(
    results: Annotated[Path, typer.Argument(help="Folder of gpu-*.json, as scripts/gpu_suite writes them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Markdown file.")] = Path("performance-gpu.md"),
    ratio: bench_speed.AskedRatio = 3.3,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write docs/performance-gpu.md: the claim on a GPU, every way to compute, where the time goes, and a chart.

    The chart lies beside it, as PNG of the same name.
    """
    with user_errors():
        from ssn.benchmarks.pages.charts import bars_png
        from ssn.benchmarks.pages.gpu import chart_rows, read_gpu_results
        from ssn.benchmarks.pages.gpu import gpu_page as page
        from ssn.benchmarks.results import reading_results
        from ssn.core.atomic import atomic_path, atomic_together, write_text_atomic
        from ssn.core.errors import OutputError
        from ssn.core.outputs import check_file

        if output.suffix != ".md":
            raise OutputError(f"{output}: the page is Markdown, with its chart beside it; end the name in .md")
        for file in (output, chart := output.with_suffix(".png")):
            check_file(file, overwrite=force)
        with reading_results(results):
            found = read_gpu_results(results)
            text = page(found, name=output.name, ratio=ratio)
            picture = bars_png(chart_rows(found), "ms", "ms a volume, on the device")
        with atomic_together(overwrite=force) as held:
            write_text_atomic(output, text, overwrite=force, held=held)
            with atomic_path(chart, overwrite=force, held=held) as temporary:
                temporary.write_bytes(picture)
        typer.echo(f"{output}: written")


for command in (
    bench_speed.latency,
    bench_speed.memory,
    bench_speed.throughput,
    bench_speed.claim,
    bench_speed.report,
    bench_speed.performance,
):
    app.command()(command)
