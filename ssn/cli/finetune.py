"""`ssn-train finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ssn.cli.console import progress_bar, user_errors
from ssn.cli.options import ContrastOption, DeviceOption, EncoderWeightsOption, LayoutOption, encoder_weights_named


def finetune(
    data: Annotated[Path, typer.Argument(help="Br35H, a folder of pictures, or healthy volumes as fit takes them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    encoder: Annotated[
        Literal["compact", "paper"], typer.Option(help="compact: EfficientNet-Lite0. paper: WideResNet-50.")
    ] = "compact",
    encoder_weights: EncoderWeightsOption = "imagenet",
    iterations: Annotated[int, typer.Option(help="Steps.", min=1)] = 4000,
    batch: Annotated[int, typer.Option(help="Slices a step.", min=2)] = 32,
    encoder_learning_rate: Annotated[float, typer.Option(help="AdamW's, of the encoder.", min=0)] = 5e-5,
    decoder_learning_rate: Annotated[float, typer.Option(help="AdamW's, of bottleneck and decoder.", min=0)] = 5e-4,
    size: Annotated[
        int | None, typer.Option(help="Pixels a side; 256 for pictures, 192 for volumes if not given.", min=32)
    ] = None,
    slices_a_volume: Annotated[int, typer.Option(help="Slices drawn from each volume.", min=1)] = 16,
    validate_every: Annotated[int, typer.Option(help="Steps between validations (and checkpoints).", min=1)] = 200,
    accumulate: Annotated[int, typer.Option(help="Pieces that a step is computed in, for less memory.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and drawn slices.", min=0, max=2**31 - 1)] = 0,
    layout: LayoutOption = None,
    contrast: ContrastOption = None,
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option(help="Go on from the output folder.")] = False,
) -> None:
    """Fine-tune an encoder on healthy 2D slices; fit takes the result with --encoder-weights OUT/encoder.safetensors.

    Encoder-decoder contrast: a decoder learns to say what the encoder says at three levels. Healthy images only.
    """
    with user_errors():
        from ssn.core.errors import OutputError
        from ssn.core.outputs import check_folder
        from ssn.train.distributed import processes
        from ssn.train.encoder import COMPACT, PAPER
        from ssn.train.finetune import ENCODER_FILE, RECORD_FILE, FinetuneOptions
        from ssn.train.finetune import finetune as run
        from ssn.train.slice_images import read_slice_images

        if (output / RECORD_FILE).exists() and not resume:
            raise OutputError(f"{output}: holds a fine-tuning; use --resume to go on with it, or another folder")
        check_folder(output)
        options = FinetuneOptions(
            iterations=iterations,
            batch=batch,
            encoder_learning_rate=encoder_learning_rate,
            decoder_learning_rate=decoder_learning_rate,
            validate_every=validate_every,
            accumulate=accumulate,
            seed=seed,
        )
        with processes(device) as ranks, progress_bar(ranks.rank == 0) as bar:
            files = bar.add_task("images", total=None)
            images = read_slice_images(
                data,
                layout,
                contrast,
                size=size,
                slices_a_volume=slices_a_volume,
                seed=seed,
                progress=lambda done, total: bar.update(files, completed=done, total=total),
            )
            steps = bar.add_task("fine-tuning", total=iterations)
            curve = run(
                PAPER if encoder == "paper" else COMPACT,
                images,
                output,
                options,
                weights=encoder_weights_named(encoder_weights),
                resume=resume,
                ranks=ranks,
                progress=lambda done, loss: bar.update(steps, completed=done, description=f"loss {loss:.4f}"),
            )
        if ranks.rank == 0:
            typer.echo(
                f"{output / ENCODER_FILE}: {curve[-1].iteration} steps on {len(images.train)} slices, validation loss "
                f"{curve[0].validation_loss:.4f} after {curve[0].iteration} steps, {curve[-1].validation_loss:.4f} now"
            )
