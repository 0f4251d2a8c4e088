"""`ssn-train`: check data or make it, train a detector, calibrate it and measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ssn.cli.ablate import ablate
from ssn.cli.calibrate import volume_threshold
from ssn.cli.check_data import check_data
from ssn.cli.console import progress_bar, user_errors
from ssn.cli.finetune import finetune
from ssn.cli.options import (
    ContrastOption,
    Data,
    DeviceOption,
    EncoderWeightsOption,
    LayoutOption,
    PoolOption,
    PresetOption,
    VersionOption,
    encoder_weights_named,
)
from ssn.cli.synth import synth

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.callback()
def main(
    version: VersionOption = False,
) -> None:
    """Check data or make it, train a detector, calibrate it and measure it."""


app.command()(check_data)
app.command()(finetune)
app.command()(synth)

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for cached features; beside the checkpoint if not given.")]


@app.command()
def fit(
    data: Data,
    output: Output,
    layout: LayoutOption = None,
    contrast: ContrastOption = None,
    preset: PresetOption = "compact",
    pool: PoolOption = None,
    whiten: Annotated[
        bool | None,
        typer.Option("--whiten/--no-whiten", help="Whiten the features (extension). The preset's if not given."),
    ] = None,
    align: Annotated[
        bool,
        typer.Option(
            "--align",
            help="Bring each volume's features to mean and covariance of all, by its own (extension): less of the "
            "training's own scanners is learned. Volumes that the model is asked about are then aligned as well.",
        ),
    ] = False,
    encoder_weights: EncoderWeightsOption = "imagenet",
    loss: Annotated[Literal["spp", "triplet", "hard", "none"], typer.Option(help="Contrastive term.")] = "spp",
    anomalies: Annotated[
        Literal["noise", "image"] | None,
        typer.Option(
            help="What spp and hard push away: noised features, or features of blobs in the image; triplet knows noise "
            "only, and with --loss none there is nothing to push."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the volumes.", min=1)] = None,
    batch: Annotated[int | None, typer.Option(help="Locations a step.", min=2)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Adam's.", min=0)] = None,
    noise: Annotated[
        float | None,
        typer.Option(help="Noise of synthetic anomalies; no effect on those in the image, or with --loss none.", min=0),
    ] = None,
    share: Annotated[float | None, typer.Option(help="Share of locations an epoch.", min=0, max=1)] = None,
    mix: Annotated[int | None, typer.Option(help="Volumes shuffled together.", min=1)] = None,
    precision: Annotated[Literal["fp32", "bf16"] | None, typer.Option(help="Of the flow's products.")] = None,
    tune_encoder: Annotated[
        int,
        typer.Option(help="Rounds (8 steps of 24 slices) of training encoder and flow together, at the end.", min=0),
    ] = 0,
    encoder_learning_rate: Annotated[
        float | None, typer.Option(help="Adam's, in those rounds; no effect without --tune-encoder.", min=0)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and noise.", min=0, max=2**31 - 1)] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the output folder.")] = False,
    device: DeviceOption = "auto",
    accumulate: Annotated[int, typer.Option(help="Pieces that a step is computed in, for less memory.", min=1)] = 1,
    cache: Cache = None,
) -> None:
    """Train the flow on the data set's healthy volumes (split `train`); the encoder is frozen, or trained last.

    Several GPUs: torchrun --nproc-per-node N -m ssn.cli.train fit ... (the result is that of one process).
    """
    with user_errors():
        from dataclasses import replace

        from ssn.core.errors import DataError, OutputError
        from ssn.train.checkpoint import RECORD_FILE
        from ssn.train.datasets import open_split
        from ssn.train.distributed import processes
        from ssn.train.fit import Progress
        from ssn.train.fit import fit as run
        from ssn.train.presets import preset as settings

        if (output / RECORD_FILE).exists() and not resume:
            raise OutputError(f"{output}: holds a checkpoint; use --resume to go on with it, or another folder")
        cases = open_split(data, "train", layout, contrast)
        config, options = settings(preset)
        config = config.pooled(pool) if pool else config
        config = config if whiten is None else replace(config, whiten=whiten)
        if align and not config.whiten:
            raise DataError("--align is of whitened features; give --whiten or another preset as well, or leave it out")
        config = replace(config, aligned=align)
        given = {
            "epochs": epochs, "batch": batch, "learning_rate": learning_rate,
            "noise": noise, "share": share, "mix": mix, "anomalies": anomalies, "precision": precision,
            "encoder_learning_rate": encoder_learning_rate,
        }  # fmt: skip
        chosen = {name: value for name, value in given.items() if value is not None}
        options = replace(options, loss=loss, seed=seed, tune_encoder=tune_encoder, **chosen)  # type: ignore[arg-type]
        weights = encoder_weights_named(encoder_weights)
        with processes(device) as ranks, progress_bar(ranks.rank == 0) as bar:
            features = bar.add_task("features", total=len(cases))
            training = bar.add_task("training", total=options.epochs + options.tune_encoder)

            def show(at: Progress) -> None:
                text = f"epoch {at.epoch + 1}  loss {at.loss:.4f}  log-likelihood {at.likelihood:.4f}"
                bar.update(training, completed=at.epoch + at.done, description=text)

            detector = run(
                config,
                [case.image for case in cases],
                output,
                options,
                cache=cache or output / "features",
                weights=weights,
                resume=resume,
                ranks=ranks,
                accumulate=accumulate,
                on_volume=lambda done: bar.update(features, completed=done),
                progress=show,
            )
        if ranks.rank > 0:
            return
        tuning = detector.record.get("tuning", [])
        last = [*detector.record["history"], *tuning][-1]
        rounds = f" and {len(tuning)} rounds with the encoder" if tuning else ""
        typer.echo(
            f"{output}: {len(detector.record['history'])} epochs{rounds}, loss {last['loss']:.4f}, "
            f"log-likelihood {last['log_likelihood']:.4f}"
        )


@app.command()
def calibrate(
    checkpoint: Annotated[Path, typer.Argument(help="Folder written by fit.")],
    data: Data,
    layout: LayoutOption = None,
    contrast: ContrastOption = None,
    sigma: Annotated[float, typer.Option(help="Gaussian of the map, mm.", min=0, max=50)] = 4.0,
    cache: Cache = None,
    rate: Annotated[
        float, typer.Option(help="Share of healthy brain voxels above the threshold.", min=0, max=1)
    ] = 0.005,
    unseen: Annotated[
        list[str] | None,
        typer.Option(
            help="MODEL=DATA: a calibrated model that was trained without the head or scanner of DATA, whose healthy "
            "volumes then give threshold and volume scores. May be repeated."
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Calibrate a checkpoint on the data set's held-out healthy volumes (split `calibration`)."""
    with user_errors():
        from ssn.core.bundle import CALIBRATION_FILE
        from ssn.core.calibrate import with_threshold_of
        from ssn.core.outputs import check_file, check_folder
        from ssn.train.calibrate import calibrate_detector, save_calibration
        from ssn.train.checkpoint import load_checkpoint
        from ssn.train.datasets import open_split
        from ssn.train.distributed import choose_device
        from ssn.train.features import FeatureReader
        from ssn.train.trained import refuse_trained
        from ssn.train.unseen import open_unseen, scored

        detector = load_checkpoint(checkpoint).to(choose_device(device))
        others = open_unseen(unseen or (), contrast, sigma, device, aligned=detector.config.aligned)
        cache = cache or checkpoint / "features"
        reader = FeatureReader(detector.network, cache)
        cases = open_split(data, "calibration", layout, contrast)
        refuse_trained(checkpoint, cases)
        check_folder(cache)
        check_file(checkpoint / CALIBRATION_FILE, overwrite=True)
        with progress_bar() as bar:
            scans = (case.image for case in bar.track(cases, description="healthy volumes"))
            result = calibrate_detector(detector, scans, reader, sigma=sigma, rate=rate)
            if others:
                heads = bar.track(scored(others), total=sum(len(each.cases) for each in others), description="unseen")
                result = with_threshold_of(result, heads)
        save_calibration(checkpoint, result)
        whose = "--unseen's healthy" if others else "healthy"
        typer.echo(
            f"{checkpoint}: map threshold {result.threshold:.2f} ({rate:.2%} of {whose} brain above it), "
            f"volume threshold {volume_threshold(result)}"
        )


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A bundle, or a folder written by fit and calibrate.")],
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")] = Path("accuracy.json"),
    layout: LayoutOption = None,
    contrast: ContrastOption = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="Data set whose validation split chooses the Dice threshold, if another."),
    ] = None,
    own_threshold: Annotated[
        bool,
        typer.Option(
            "--own-threshold", help="Dice at the model's own threshold: validation's half of a folder tests as well."
        ),
    ] = False,
    align: Annotated[
        bool | None,
        typer.Option(
            "--align/--no-align",
            help="Align each volume's features by their own, as ssn-infer does; as the threshold is for, if not given.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace the JSON file.")] = False,
) -> None:
    """Measure a model on the test split; the Dice threshold comes from the validation split."""
    with user_errors():
        from ssn.core.atomic import write_json_atomic
        from ssn.core.errors import DataError
        from ssn.core.outputs import check_file
        from ssn.train import evaluate as measuring
        from ssn.train.datasets import open_measured, open_split, refuse_shared, refuse_without_lesion
        from ssn.train.trained import open_trained, refuse_trained

        if own_threshold and validation:
            raise DataError("--own-threshold and --validation: the threshold comes from one of them; leave out one")
        check_file(output, overwrite=force)
        method = open_trained(model, device, align=align)
        if own_threshold:
            test, chosen_on = open_measured(data, layout, contrast), []
        else:
            test = open_split(data, "test", layout, contrast)
            # Another data set lies as it lies: a forced layout is the first one's.
            chosen_on = open_split(validation or data, "validation", None if validation else layout, contrast)
        refuse_shared(chosen_on, test)
        refuse_trained(model, [*chosen_on, *test])
        if not own_threshold:
            refuse_without_lesion(chosen_on)
        with progress_bar() as bar:
            task = bar.add_task("volumes", total=len(test) + len(chosen_on))

            def step() -> None:
                bar.advance(task)

            threshold = method.threshold if own_threshold else measuring.validation_threshold(method, chosen_on, step)
            rows = measuring.evaluate(method, test, threshold, step)
        result = measuring.as_json(rows, threshold, "healthy" if own_threshold else "validation")
        write_json_atomic(output, result, overwrite=force)
        measuring.print_table(model.name, result["summary"])


app.command()(ablate)

if __name__ == "__main__":  # torchrun -m ssn.cli.train
    app()
