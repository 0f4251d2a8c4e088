"""`ssn-train ablate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ssn.cli.console import progress_bar, user_errors
from ssn.cli.options import (
    ContrastOption,
    Data,
    DeviceOption,
    EncoderWeightsOption,
    LayoutOption,
    PoolOption,
    PresetOption,
    encoder_weights_named,
)


class QuestionName(StrEnum):
    """`ssn.train.arms.Question` for typer, which takes no list of literals."""

    LOSS = "loss"
    ENCODER = "encoder"
    AGGREGATION = "aggregation"
    CODE = "code"
    ANOMALIES = "anomalies"
    DECAY = "decay"
    SLICES = "slices"
    WHITENING = "whitening"
    ALIGNMENT = "alignment"
    FLOW = "flow"
    WIDTH = "width"
    CALIBRATION = "calibration"
    NORMALISATION = "normalisation"
    RIM = "rim"


def ablate(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; go on in it after an interruption.")],
    question: Annotated[
        list[QuestionName],
        typer.Option(help="What to vary, one at a time; may be given several times."),
    ] = [QuestionName.LOSS, QuestionName.AGGREGATION, QuestionName.CODE],  # noqa: B006 - typer copies it
    seeds: Annotated[int, typer.Option(help="Runs of each arm: seeds 0 to N - 1.", min=1)] = 3,
    preset: PresetOption = "compact",
    pool: PoolOption = None,
    encoder_weights: EncoderWeightsOption = "imagenet",
    tuned: Annotated[
        Path | None, typer.Option(help="encoder.safetensors of ssn-train finetune, for --question encoder.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the volumes.", min=1)] = None,
    batch: Annotated[int | None, typer.Option(help="Locations a step.", min=2)] = None,
    measure_on: Annotated[
        Path | None,
        typer.Option(help="Data set of the test split, and of the validation split where it has one, if another."),
    ] = None,
    measure_contrast: Annotated[
        str | None, typer.Option(help="Contrast to take of --measure-on; that of --contrast if not given.")
    ] = None,
    calibrate_on: Annotated[Path | None, typer.Option(help="Data set of the calibration split, if another.")] = None,
    reuse: Annotated[
        Path | None, typer.Option(help="Output folder of another ablation, to take models and features from.")
    ] = None,
    layout: LayoutOption = None,
    contrast: ContrastOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Switch off one idea of the method at a time, over seeds, and write a table with means and spread, and a figure.

    Writes OUT/ablation.json, ablation.md and ablation.png; OUT/runs holds one JSON for each arm and seed. Started
    several times with the same arguments, as one process a core, the processes share the runs.
    """
    with user_errors():
        from dataclasses import replace

        from ssn.train.ablate import run_arms
        from ssn.train.ablation_data import open_ablation_data
        from ssn.train.ablation_report import write_report
        from ssn.train.arms import plan_arms
        from ssn.train.distributed import processes
        from ssn.train.presets import preset as settings

        config, options = settings(preset)
        config = config.pooled(pool) if pool else config
        options = replace(options, epochs=epochs or options.epochs, batch=batch or options.batch)
        weights = encoder_weights_named(encoder_weights)
        arms = plan_arms([q.value for q in dict.fromkeys(question)], config, options, weights, tuned)  # type: ignore[arg-type]
        cases = open_ablation_data(
            data, layout, contrast, measure_on=measure_on, measure_contrast=measure_contrast, calibrate_on=calibrate_on
        )
        count = len({arm.run for arm in arms})
        with processes(device) as ranks, progress_bar(ranks.rank == 0) as bar:
            task = bar.add_task("runs", total=count * seeds)
            results = run_arms(
                arms, seeds, cases, output, reuse=reuse, ranks=ranks,
                progress=lambda doing: bar.update(task, description=doing),
                on_run=lambda: bar.advance(task),
            )  # fmt: skip
        if ranks.rank == 0:
            write_report(output, arms, results)
            typer.echo(f"{output / 'ablation.md'}: {count} arms, {seeds} seeds each")
