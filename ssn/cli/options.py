"""Arguments and options that several commands have: those with a data set, and those that run a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Data = Annotated[
    Path,
    typer.Argument(help="Folder of NIfTI, IXI, BraTS2021, or a CSV (image,mask,split); ssn-train check-data explains."),
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

BackendOption = Annotated[
    Literal["auto", "tensorrt", "onnxruntime", "openvino"],
    typer.Option("--backend", help="What computes; auto takes the best that is here."),
]
BatchOption = Annotated[
    int | None, typer.Option("--batch", help="Slices at once: bounds memory; the backend's own if not given.", min=3)
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="CPU threads; all cores if not given.", min=1)]
