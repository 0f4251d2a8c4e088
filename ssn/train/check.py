"""What would spoil an hour of training, found in file headers and names before it begins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from ssn.core.errors import DataError, SsnError
from ssn.core.nifti_header import read_header
from ssn.core.nifti_stream import NiftiStream
from ssn.train.cases import HEALTHY_SPLITS, Case, Dataset
from ssn.train.masks import read_mask

_LIST_PROBLEMS = "ssn-train check-data lists them all"


@dataclass(frozen=True)
class Grid:
    """A volume's grid in canonical axis order: shape (X, Y, Z), voxel edges in mm, and where its corners lie."""

    shape: tuple[int, ...]
    zooms: tuple[float, ...]
    corners: NDArray[np.float64]  # (8, 3), mm, world coordinates, in any order

    def far_from(self, other: Grid) -> bool:
        """Whether a corner lies more than half a voxel from where the other has one."""
        apart = np.linalg.norm(self.corners[:, None] - other.corners, axis=-1)
        return bool(apart.min(1).max() > 0.5 * min(other.zooms))


def read_grid(path: Path) -> Grid:
    """Read the grid from a file's header alone.

    Raises
    ------
    VolumeError
        If there is no file, or its header is not that of one plausible volume.
    """
    with NiftiStream(path) as stream:
        declared = read_header(stream)
    axes = np.argsort(orientations.io_orientation(declared.affine)[:, 0])
    ends = [(0, n - 1) for n in declared.shape]
    corners = np.array([[i, j, k, 1] for i in ends[0] for j in ends[1] for k in ends[2]], float)
    mm_per_unit = declared.own_zooms[0] / np.linalg.norm(declared.affine[:3, 0])
    world = (corners @ declared.affine.T)[:, :3] * mm_per_unit
    return Grid(
        tuple(declared.shape[axis] for axis in axes),
        tuple(round(float(declared.own_zooms[axis]), 4) for axis in axes),
        world,
    )


def header_problems(case: Case) -> list[str]:
    """List what is wrong by the headers of a case's image and mask, one line each with the file named."""
    problems = []
    grids = []
    for path in (case.image, case.mask):
        try:
            if path is not None:
                grids.append(read_grid(path))
        except SsnError as error:
            problems.append(str(error))
    if len(grids) == 2 and not problems:
        image, mask = grids
        if image.shape != mask.shape:
            problems.append(f"{case.mask}: the mask has shape {mask.shape}, its image {image.shape}")
        # A mask that lost its affine would be flipped, or not, other than its image.
        elif mask.far_from(image):
            problems.append(f"{case.mask}: the mask lies elsewhere than its image (affines differ); write it again")
    return problems


def mask_problem(case: Case) -> str | None:
    """Say so if a case that must be healthy has a lesion in its mask, or one with a mask has none."""
    if case.mask is None:
        return None
    marked = bool(read_mask(case.mask).any())
    if marked and case.split in HEALTHY_SPLITS:
        return f"{case.mask}: marks a lesion, but {case.name} is in split {case.split!r}, which must be healthy"
    if not marked and case.split not in HEALTHY_SPLITS:
        return f"{case.mask}: marks nothing; a healthy volume has no mask at all"
    return None


def subject_problems(cases: Sequence[Case]) -> list[str]:
    """Subjects that are in more than one split, by their id; one line each.

    Of the layouts only a table says each volume's split, and without its column `subject` a file's name is the id.
    """
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for case in cases:
        places[case.subject].setdefault(case.split, case.name)
    return [
        f"{' and '.join(found.values())}: subject {subject} is in splits {' and '.join(found)}; keep it in one, "
        "or, if they are several people, name each in the table's column 'subject'"
        for subject, found in places.items()
        if len(found) > 1
    ]


def file_problems(cases: Sequence[Case]) -> list[str]:
    """Images that occur more than once."""
    seen: set[Path] = set()
    problems = []
    for case in cases:
        file = case.image.resolve()
        if file in seen:
            problems.append(f"{case.name}: is listed more than once")
        seen.add(file)
    return problems


def refuse_unusable(dataset: Dataset, used: Sequence[Case]) -> None:
    """Raise for what headers, names and masks say is wrong.

    Parameters
    ----------
    used : the cases that are about to be read; only their files are opened

    Raises
    ------
    DataError
        With the first problem, and how many there are.
    """
    problems = [*dataset.problems, *subject_problems(dataset.cases), *file_problems(dataset.cases)]
    for case in used:
        found = header_problems(case)
        if not found and (wrong := mask_problem(case)):
            found.append(wrong)
        problems += found
    if problems:
        more = f" (and {len(problems) - 1} more; {_LIST_PROBLEMS})" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)
