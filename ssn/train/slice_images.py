"""2D slices to fine-tune an encoder on: Br35H, a folder of pictures, or slices drawn from healthy volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssn.core.atomic import printable
from ssn.core.errors import DataError
from ssn.core.geometry import GridConfig
from ssn.core.slices import cut_slices
from ssn.core.volume import read_volume
from ssn.train.cases import Layout, split_subjects
from ssn.train.datasets import open_split, read_dataset, recognise
from ssn.train.layouts import pictures_in

PICTURE_SIZE = 256  # pixels, as published
VALIDATION_SHARE = 0.1  # of pictures, or of volumes, where the data set does not state it
_MIN_BRAIN_SHARE = 0.1  # of a slice's pixels, so that no slice is all background


@dataclass(frozen=True)
class SliceImages:
    """Grey slices (N, S, S) uint8: those trained on, and others for the validation curve."""

    train: Tensor
    validation: Tensor


def read_slice_images(
    path: Path,
    layout: Layout | None = None,
    contrast: str | None = None,
    *,
    size: int | None = None,
    slices_a_volume: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SliceImages:
    """Read healthy slices from whatever lies at `path`.

    Parameters
    ----------
    size : pixels a side; not given, pictures come in 256 and volumes as the detector sees them (192, at 1 mm)
    slices_a_volume : axial slices drawn from each volume, with `seed`
    progress : called with the number of files done and of all files

    Raises
    ------
    DataError
        If there are too few healthy images, one cannot be read, or a data set lies beside pictures.
    """
    picture = partial(_grey, size=size or PICTURE_SIZE)
    drawn = partial(_drawn, size=size, count=slices_a_volume, rng=np.random.default_rng(seed))
    pictures = pictures_in(path) if layout is None else []
    if pictures:
        _refuse_beside_a_dataset(path, pictures[0])
        splits = split_subjects((p.name for p in pictures), "validation", "train", VALIDATION_SHARE)
        groups = [[p for p in pictures if splits[p.name] == split] for split in ("train", "validation")]
        return _read_all(path, groups, "healthy images", picture, progress)
    dataset = read_dataset(path, layout)
    if dataset.flat:
        groups = [[c.image for c in dataset.cases if c.split == s and not c.lesion] for s in ("train", "validation")]
        return _read_all(path, groups, "healthy images", picture, progress)
    cases = open_split(path, "train", layout, contrast)
    held_out = split_subjects((case.subject for case in cases), "validation", "train", VALIDATION_SHARE)
    groups = [[c.image for c in cases if held_out[c.subject] == split] for split in ("train", "validation")]
    return _read_all(path, groups, "healthy volumes in split 'train'", drawn, progress)


def _refuse_beside_a_dataset(path: Path, picture: Path) -> None:
    """Refuse pictures where a known layout lies too: they may be stray, and so may the data set."""
    try:
        layout = recognise(path)
    except DataError:
        return
    raise DataError(
        f"{printable(path)}: holds pictures ({picture.name}) and a data set (layout {layout}); give --layout {layout} "
        "for the data set, or move the pictures to a folder of their own"
    )


def _read_all(
    path: Path,
    groups: Sequence[Sequence[Path]],
    what: str,
    read: Callable[[Path], Tensor],
    progress: Callable[[int, int], None],
) -> SliceImages:
    """Read the slices (n, S, S) of each file of both groups, `what` in an error's words."""
    total = sum(map(len, groups))
    if not all(groups):
        raise DataError(f"{printable(path)}: has {total} {what}; two at least are needed, one to validate on")
    done = 0
    together = []
    for group in groups:
        slices = []
        for file in group:
            slices.append(read(file))
            progress(done := done + 1, total)
        together.append(torch.cat(slices))
    return SliceImages(*together)


def _grey(path: Path, size: int) -> Tensor:
    """Read a picture, (1, S, S)."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            grey = image.convert("L").resize((size, size), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{printable(path)}: cannot be read as an image ({error})") from error
    return torch.from_numpy(np.array(grey))[None]


def _drawn(path: Path, size: int | None, count: int, rng: np.random.Generator) -> Tensor:
    """Draw slices of a volume, (count, S, S) at most."""
    grid = GridConfig()
    slices = cut_slices(read_volume(path), grid, grid.plane // 4).slices
    filled = np.flatnonzero((slices > 0).mean((1, 2)) >= _MIN_BRAIN_SHARE)
    chosen = np.sort(rng.permutation(filled)[:count])
    return _resized(torch.from_numpy(slices[chosen]), size)


def _resized(slices: Tensor, size: int | None) -> Tensor:
    if size is not None and size != slices.shape[-1]:
        slices = F.interpolate(slices[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
    return (slices.clamp(0, 1) * 255).round().byte()
