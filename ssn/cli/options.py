"""Arguments and options that several commands have: the version, data sets, and what runs a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def _print_version(wanted: bool) -> None:
    """Typer callback of `--version`."""
    if wanted:
        from ssn import __version__

        typer.echo(__version__)
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
]
Data = Annotated[
    Path,
    typer.Argument(help="Folder of NIfTI, IXI, BraTS2021, or a CSV (image,mask,split): docs/train.md."),
]
LayoutOption = Annotated[
    Literal["csv", "ixi", "brats", "br35h", "folder"] | None,
    typer.Option("--layout", help="How the data set lies on disk; recognised if not given."),
]
ContrastOption = Annotated[
    str | None, typer.Option("--contrast", help="Contrast to take where there are several: t1, t1ce, t2, flair.")
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where to compute; auto: a GPU if there is one.")
]

PresetOption = Annotated[
    Literal["compact", "wide", "paper", "parity"],
    typer.Option(
        help="Model and training: the shipped model's (compact), the same with the published encoder (wide), the "
        "published method (paper), or that on its fixed window of 96 slices (parity)."
    ),
]
PoolOption = Annotated[
    Literal["mean", "max", "attention", "slab", "middle", "none"] | None,
    typer.Option(
        "--pool",
        help="How three slices become one: their features' mean (published), max or attention, or, before the "
        "encoder, their images' mean (slab) or the middle one; none keeps each slice. The preset's if not given.",
    ),
]

# Models of ssn.benchmarks.slice_models and parts of ssn.benchmarks.gpu.suite, named here because importing those takes
# seconds.
SliceModel = Literal["compact", "wide_resnet50_2", "wide_resnet50_2-slab"]
SliceModels = Literal["all", SliceModel]
GpuPart = Literal["all", "torch", "onnxruntime", "tensorrt"]
BackendOption = Annotated[
    Literal["auto", "tensorrt", "onnxruntime", "openvino"],
    typer.Option("--backend", help="What computes; auto takes the best that is here."),
]
BatchOption = Annotated[
    int | None,
    typer.Option("--batch", help="1 mm slices at once: bounds memory; the backend's own if not given.", min=3),
]


EncoderWeightsOption = Annotated[
    str, typer.Option("--encoder-weights", help="Of the encoder, to start from: imagenet, none, or a safetensors file.")
]


def refuse_idle(context: typer.Context, when: str, *names: str) -> None:
    """Refuse options, by their parameters' names, that were given and do nothing the way the command is called."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--{name.replace('_', '-')} does nothing {when}; leave it out")


def encoder_weights_named(text: str) -> Literal["imagenet", "none"] | Path:
    """Weights as `ssn.train.encoder.build_encoder` takes them, from `--encoder-weights`."""
    match text:
        case "imagenet" | "none":
            return text
        case _:
            return Path(text)


def _at_most_cores(threads: int | None) -> int | None:
    """Typer callback: more threads than cores only wait for each other."""
    if threads is None:
        return None
    from ssn.runtime.machine import cores

    return min(threads, cores())


ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", help="CPU threads; all cores if not given.", min=1, callback=_at_most_cores),
]
