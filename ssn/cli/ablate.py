"""`ssn-train ablate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ssn.cli.console import progress_bar, user_errors
from ssn.cli.options import ContrastOption, Data, DeviceOption, LayoutOption


class QuestionName(StrEnum):
    """`ssn.train.ablate.Question` for typer, which takes no list of literals."""

    LOSS = "loss"
    ENCODER = "encoder"
    AGGREGATION = "aggregation"
    CODE = "code"
    ANOMALIES = "anomalies"


def ablate(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; go on in it after an interruption.")],
    question: Annotated[
        list[QuestionName],
        typer.Option(help="What to vary, one at a time; may be given several times."),
    ] = [QuestionName.LOSS, QuestionName.AGGREGATION, QuestionName.CODE],  # noqa: B006 - typer copies it
    seeds: Annotated[int, typer.Option(help="Runs of each arm: seeds 0 to N - 1.", min=1)] = 3,
    preset: Annotated[
        Literal["compact", "paper", "parity"], typer.Option(help="The base that every arm differs from in one thing.")
    ] = "compact",
    encoder_weights: Annotated[
        str, typer.Option(help="Of the base: imagenet, none, or a safetensors file.")
    ] = "imagenet",
    tuned: Annotated[
        Path | None, typer.Option(help="encoder.safetensors of ssn-train finetune, for --question encoder.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the volumes.", min=1)] = None,
    measure_on: Annotated[
        Path | None, typer.Option(help="Data set of the validation and test splits, if another.")
    ] = None,
    layout: LayoutOption = None,
    contrast: ContrastOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Switch off one idea of the method at a time, over seeds, and write a table with means and spread, and a figure.

    Writes OUT/ablation.json, ablation.md and ablation.png; OUT/runs holds one JSON for each arm and seed.
    """
    with user_errors():
        from dataclasses import replace

        from ssn.train.ablate import AblationData, plan_arms, run_arm
        from ssn.train.ablation_report import write_report
        from ssn.train.datasets import open_split
        from ssn.train.distributed import processes
        from ssn.train.presets import preset as settings

        config, options = settings(preset)
        if epochs is not None:
            options = replace(options, epochs=epochs)
        weights = encoder_weights if encoder_weights in ("imagenet", "none") else Path(encoder_weights)
        arms = plan_arms([q.value for q in dict.fromkeys(question)], config, options, weights, tuned)  # type: ignore[arg-type]
        # Another data set lies as it lies: a forced layout is the first one's.
        measured, measured_layout = (measure_on, None) if measure_on else (data, layout)
        cases = AblationData(
            train=open_split(data, "train", layout, contrast),
            calibration=open_split(data, "calibration", layout, contrast),
            validation=open_split(measured, "validation", measured_layout, contrast),
            test=open_split(measured, "test", measured_layout, contrast),
        )
        runs = list({arm.run: arm for arm in arms}.values())
        with processes(device) as ranks, progress_bar(ranks.rank == 0) as bar:
            task = bar.add_task("runs", total=len(runs) * seeds)
            results: dict[str, list[dict[str, Any]]] = {}
            for arm in runs:
                results[arm.run] = []
                for seed in range(seeds):
                    name = f"{arm.run} seed {seed}"
                    results[arm.run].append(
                        run_arm(
                            arm, seed, cases, output, ranks=ranks,
                            progress=lambda doing, name=name: bar.update(task, description=f"{name}: {doing}"),  # type: ignore[misc]
                        )
                    )  # fmt: skip
                    bar.advance(task)
        if ranks.rank == 0:
            write_report(output, arms, results)
            typer.echo(f"{output / 'ablation.md'}: {len(runs)} arms, {seeds} seeds each")
