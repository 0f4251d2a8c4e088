"""Tiny trees of each data set's layout, made on the spot."""

from pathlib import Path

import numpy as np
from brains import LESION_AT, brain_array, brain_file, save

ZOOMS = (6.0, 6.0, 6.0)


def volume(path: Path, seed=0, lesion=False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return brain_file(path, ZOOMS, lesion=lesion, seed=seed)


def mask(path: Path, radius=16.0) -> Path:
    """A ball at the lesion of `brain_array`; radius 0 marks nothing."""
    data, affine = brain_array(ZOOMS)
    places = np.stack(np.meshgrid(*(affine[i, i] * np.arange(n) + affine[i, 3] for i, n in enumerate(data.shape)),
                                  indexing="ij"), -1)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(path, np.linalg.norm(places - LESION_AT, axis=-1) < radius, affine, dtype=np.uint8)


def ixi(folder: Path, subjects=5, contrasts=("T1",)) -> Path:
    for contrast in contrasts:
        for number in range(subjects):
            volume(folder / f"IXI{number:03d}-Guys-{700 + number:04d}-{contrast}.nii.gz", number)
    return folder


def brats(folder: Path, subjects=4, contrasts=("t1", "flair")) -> Path:
    for number in range(subjects):
        name = f"BraTS2021_{number:05d}"
        for contrast in contrasts:
            volume(folder / name / f"{name}_{contrast}.nii.gz", number, lesion=True)
        mask(folder / name / f"{name}_seg.nii.gz")
    return folder


def picture(path: Path, seed=0) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(seed).uniform(0, 255, (40, 32)).astype(np.uint8)
    Image.fromarray(grey).save(path)
    return path


def br35h(folder: Path, normals=6, variant=False) -> Path:
    for number in range(normals):
        picture(folder / "no" / f"no{number}.jpg", number)
    for number in range(2):
        picture(folder / "yes" / f"y{number}.jpg", 100 + number)
        picture(folder / "pred" / f"pred{number}.jpg", 200 + number)
        if variant:
            picture(folder / "Br35H-Mask-RCNN" / "TRAIN" / f"y{number}.jpg", 100 + number)
    return folder


def plain(folder: Path, healthy=4, lesioned=0) -> Path:
    for number in range(healthy):
        volume(folder / f"h{number}.nii.gz", number)
    for number in range(lesioned):
        volume(folder / f"p{number}.nii.gz", 50 + number, lesion=True)
        mask(folder / "masks" / f"p{number}.nii.gz")
    return folder


def table(folder: Path, *rows: str, columns="image,mask,split") -> Path:
    path = folder / "volumes.csv"
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path
