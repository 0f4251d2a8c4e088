"""Everything that can be seen of a data set before training: `ssn-train check-data`.

Unlike the checks before `fit`, this reads every file to its end.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssn.core.atomic import printable
from ssn.core.brain_doubts import doubts_as_it_lies
from ssn.core.errors import SsnError
from ssn.core.geometry import GridConfig
from ssn.core.likeness import block_edges, grey_blocks, unlike_the_rest
from ssn.core.slices import cut_slices
from ssn.core.volume import read_volume
from ssn.train.cases import HEALTHY_SPLITS, SPLITS, Case, Layout
from ssn.train.check import file_problems, header_problems, mask_problem, subject_problems
from ssn.train.datasets import mixed_contrasts, of_contrast, read_dataset
from ssn.train.masks import read_mask, unusable_mask

# Layouts that state each file's contrast and hold several by design; elsewhere a mix is a mistake.
_SEVERAL_CONTRASTS = ("ixi", "brats")
_GRID, _CELLS = GridConfig(), 48  # of what a volume looks like; cells a row


@dataclass(frozen=True)
class CaseFacts:
    """What was found in one case's files.

    Attributes
    ----------
    shape, zooms : in canonical axis order, zooms in mm; () for an image that cannot be read, or a 2D one's zooms
    lesion_ml : None without a mask
    contents : hash of the voxels, whatever the file's compression
    doubts : about its header and its brain
    """

    name: str
    subject: str
    split: str
    contrast: str | None
    shape: tuple[int, ...]
    zooms: tuple[float, ...]
    lesion_ml: float | None
    contents: str
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataReport:
    """What `check_data` found; `problems` is empty where a data set can be trained on or measured with."""

    root: Path
    layout: Layout
    cases: tuple[CaseFacts, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Count splits, contrasts, shapes and voxel sizes, most frequent first."""
        lesioned = [case for case in self.cases if case.lesion_ml]
        return {
            "volumes": len(self.cases),
            "subjects": len({case.subject for case in self.cases}),
            "splits": {split: n for split in SPLITS if (n := sum(case.split == split for case in self.cases))},
            "contrasts": _counted(case.contrast or "unknown" for case in self.cases),
            "shapes": _counted(" x ".join(map(str, case.shape)) for case in self.cases if case.shape),
            "voxel_sizes_mm": _counted(" x ".join(f"{z:g}" for z in case.zooms) for case in self.cases if case.zooms),
            "with_lesion": len(lesioned),
        }

    def as_json(self) -> dict[str, Any]:
        """Everything, in plain values."""
        return {
            "root": str(self.root),
            "layout": self.layout,
            "summary": self.summary(),
            "problems": list(self.problems),
            "notes": list(self.notes),
            "cases": [asdict(case) for case in self.cases],
        }


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def check_data(
    path: Path,
    layout: Layout | None = None,
    contrast: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DataReport:
    """Read a whole data set and report what it holds and what is wrong with it.

    `progress` is called with the number of cases done and of all cases.

    Raises
    ------
    DataError
        Only if the path is no data set at all; what is wrong inside one is in the report.
    """
    dataset = read_dataset(path, layout)
    problems = list(dataset.problems)
    notes = list(dataset.notes)
    if contrast is not None:
        dataset = of_contrast(dataset, contrast)
    elif len(dataset.contrasts) > 1 and dataset.layout in _SEVERAL_CONTRASTS:
        notes.append(f"several contrasts ({', '.join(dataset.contrasts)}): other commands take one, with --contrast")
    elif len(dataset.contrasts) > 1:
        problems.append(mixed_contrasts(dataset))
    problems += subject_problems(dataset.cases) + file_problems(dataset.cases)
    facts = []
    looks: dict[str | None, dict[str, NDArray[np.float32]]] = defaultdict(dict)  # by contrast and name
    for index, case in enumerate(dataset.cases):
        found, wrong, look = _read_picture(case) if dataset.flat else _read_case(case)
        facts.append(found)
        problems += wrong
        notes += [f"{printable(case.name)}: {doubt}" for doubt in found.doubts]
        if look is not None:
            looks[case.contrast][case.name] = look
        progress(index + 1, len(dataset.cases))
    duplicates, same_split = _duplicates(facts)
    notes += same_split
    for alike in looks.values():
        found_doubts = unlike_the_rest(list(alike.values()), block_edges(_GRID, _CELLS), "the other volumes here")
        notes += [
            f"{printable(name)}: {doubt}" for name, doubts in zip(alike, found_doubts, strict=True) for doubt in doubts
        ]
    if not dataset.flat and not any(case.split == "train" for case in dataset.cases):
        notes.append("no volume is in split 'train': this data set can measure a detector, not train one")
    return DataReport(dataset.root, dataset.layout, tuple(facts), tuple(problems + duplicates), tuple(notes))


def _read_case(case: Case) -> tuple[CaseFacts, list[str], NDArray[np.float32] | None]:
    problems = header_problems(case)
    shape: tuple[int, ...] = ()
    zooms: tuple[float, ...] = ()
    contents, lesion_ml, look, doubts = "", None, None, []
    try:
        volume = read_volume(case.image)
        shape, zooms = volume.data.shape, tuple(round(z, 4) for z in volume.zooms)
        contents = volume.contents()
        stack = cut_slices(volume, _GRID, _CELLS, thick="middle")
        look, doubts = grey_blocks(stack), doubts_as_it_lies(volume, stack)
        if case.mask is not None and not problems:
            mask = read_mask(case.mask, shape)
            lesion_ml = round(float(mask.sum()) * volume.voxel_ml, 3)
            healthy = case.split in HEALTHY_SPLITS
            wrong = mask_problem(case) if healthy else unusable_mask(case.mask, mask[stack.brain])
            problems += [wrong] if wrong else []
    except SsnError as error:
        if not problems:  # else the header has said it already
            problems.append(str(error))
    facts = CaseFacts(
        case.name, case.subject, case.split, case.contrast, shape, zooms, lesion_ml, contents, tuple(doubts)
    )
    return facts, problems, look


def _read_picture(case: Case) -> tuple[CaseFacts, list[str], None]:
    from PIL import Image

    shape: tuple[int, ...] = ()
    contents, problems = "", []
    try:
        with Image.open(case.image) as image:
            grey = image.convert("L")
            shape = grey.size
            contents = hashlib.sha256(repr(shape).encode() + grey.tobytes()).hexdigest()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problems.append(f"{case.image}: cannot be read as an image ({error})")
    return CaseFacts(case.name, case.subject, case.split, None, shape, (), None, contents), problems, None


def _duplicates(facts: Sequence[CaseFacts]) -> tuple[list[str], list[str]]:
    """Find files of the same contents: problems where they are in two splits, notes where they are in one."""
    groups: dict[str, list[CaseFacts]] = defaultdict(list)
    for case in facts:
        if case.contents:
            groups[case.contents].append(case)
    problems, notes = [], []
    for group in groups.values():
        names = " and ".join(printable(case.name) for case in group)
        splits = list(dict.fromkeys(case.split for case in group))
        if len(splits) > 1:
            problems.append(f"{names}: same contents, in splits {' and '.join(splits)}; keep one")
        elif len(group) > 1:
            notes.append(f"{names}: same contents")
    return problems, notes
