"""`ssn-bench`: measure accuracy against references, speed against 3D networks, and engines on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ssn.cli import bench_speed
from ssn.cli.console import print_version, progress_bar, user_errors
from ssn.cli.options import ContrastOption, Data, LayoutOption

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure accuracy against references, speed against 3D networks, and engines on a GPU."""


@app.command()
def accuracy(
    checkpoint: Annotated[Path, typer.Argument(help="Folder written by ssn-train fit and calibrate.")],
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")] = Path("accuracy.json"),
    learned: Annotated[
        Path | None, typer.Option(help="Data set of the train and validation splits, if another.")
    ] = None,
    validation: Annotated[Path | None, typer.Option(help="Data set of the validation split, if yet another.")] = None,
    layout: LayoutOption = None,
    contrast: ContrastOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the JSON file.")] = False,
) -> None:
    """Measure a checkpoint and two simple references on the same test volumes with the same code.

    The references (voxel-wise z-score, PCA residual) learn from the train split; every method's Dice threshold is
    chosen on the validation split.
    """
    with user_errors():
        import json

        from ssn.core.atomic import write_text_atomic
        from ssn.train.calibrate import load_calibration
        from ssn.train.checkpoint import load_checkpoint
        from ssn.train.datasets import open_split
        from ssn.train.evaluate import (
            as_json,
            detector_method,
            evaluate,
            print_table,
            validation_threshold,
        )
        from ssn.train.references import HealthyVolumes, reference_method

        calibration = load_calibration(checkpoint)
        test = open_split(data, "test", layout, contrast)
        learned = learned or data
        validation = validation or learned
        # A forced layout is the first data set's; another lies as it lies.
        chosen_on = open_split(validation, "validation", layout if validation == data else None, contrast)
        train = open_split(learned, "train", layout if learned == data else None, contrast)
        results = {}
        with progress_bar() as bar:
            task = bar.add_task("healthy volumes", total=len(train) + 3 * (len(test) + len(chosen_on)))

            def step() -> None:
                bar.advance(task)

            healthy = HealthyVolumes.read([case.image for case in train], step)
            methods = {
                "ssn": detector_method(load_checkpoint(checkpoint), calibration, checkpoint / "features"),
                "z-score": reference_method("z-score", healthy, calibration.sigma),
                "pca": reference_method("pca", healthy, calibration.sigma),
            }
            for name, method in methods.items():
                bar.update(task, description=name)
                threshold = validation_threshold(method, chosen_on, step)
                results[name] = as_json(evaluate(method, test, threshold, step), threshold)
        write_text_atomic(output, json.dumps(results, indent=1) + "\n", overwrite=force)
        for name, result in results.items():
            print_table(name, result["summary"])


@app.command()
def gpu(
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")] = Path("gpu.json"),
    model: Annotated[Literal["all", "wide_resnet50_2", "compact"], typer.Option(help="What is measured.")] = "all",
    rounds: Annotated[int, typer.Option(help="Timed runs of a volume, of each way to compute.", min=1)] = 20,
    max_batch: Annotated[int, typer.Option(help="Slices a batch.", min=3)] = 48,
    force: Annotated[bool, typer.Option("--force", help="Replace the JSON file.")] = False,
) -> None:
    """Measure engines, streams, CUDA graphs and memory on this GPU, beside ONNX Runtime and torch.

    The models are made on the spot with random weights. What fails is recorded with its reason.
    """
    with user_errors():
        from ssn.benchmarks.gpu import require_gpu, run_gpu_suite
        from ssn.benchmarks.slice_models import MODELS
        from ssn.core.errors import OutputError

        require_gpu()
        if output.exists() and not force:
            raise OutputError(f"{output}: exists already; use --force to replace it, or another name")
        run_gpu_suite(
            output,
            models=MODELS if model == "all" else (model,),
            rounds=rounds,
            max_batch=max_batch,
            say=lambda line: typer.echo(line, err=True),
        )
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
