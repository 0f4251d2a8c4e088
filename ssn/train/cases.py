"""What training and evaluation need to know of a volume, whatever data set it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal, get_args

from ssn.core.hashed_files import file_sha256

Split = Literal["train", "calibration", "validation", "test"]
Layout = Literal["csv", "ixi", "brats", "br35h", "folder"]

SPLITS: tuple[Split, ...] = get_args(Split)
# Splits that must be healthy: the flow learns from the first, thresholds come from the second.
HEALTHY_SPLITS: tuple[Split, ...] = ("train", "calibration")
SPLIT_SEED = 2408  # of every split that a layout does not state itself


@dataclass(frozen=True)
class Case:
    """One volume (or, in a 2D data set, one image).

    Attributes
    ----------
    image : file, which a layout may promise and the disk not hold; `ssn.train.check` finds out
    name : the image as tables show it, relative to the data set's folder
    subject : who it is; one subject is in one split
    mask : lesion mask on the image's grid, or None for a volume that has none
    lesion : kind of lesion, "" in a healthy volume
    volume_ml : of the lesion, or None where only the mask can tell
    contrast : "t1", "t1ce", "t2", "flair", "pd", or None where nothing says it
    """

    image: Path
    name: str
    subject: str
    split: Split
    mask: Path | None = None
    lesion: str = ""
    volume_ml: float | None = None
    contrast: str | None = None


def case_contents(cases: Iterable[Case]) -> list[list[Any]]:
    """Everything that a measurement has of volumes, in plain values: their files' contents, not where they lie."""
    return [
        [case.name, case.lesion, case.volume_ml, *(file_sha256(file) for file in (case.image, case.mask) if file)]
        for case in cases
    ]


# What a summary says of groups of volumes, beside each kind of lesion: no kind may have such a name.
LESION_SIZES = {  # ml: from, and less than
    "1 ml and more": (1, inf),
    "4 ml and more": (4, inf),
    "below 4 ml": (-inf, 4),
    "4 to 15 ml": (4, 15),
    "15 ml and more": (15, inf),
}
RESERVED_KINDS = ("all", "healthy", "volume_auroc", *LESION_SIZES)


@dataclass(frozen=True)
class Dataset:
    """The cases of a data set in the order of their names.

    Attributes
    ----------
    root : the folder, or the table, that was read
    flat : the images are 2D, for fine-tuning the encoder only
    problems : what is wrong with the layout itself, one line each with the file named
    notes : what was seen and is not used
    """

    root: Path
    layout: Layout
    cases: tuple[Case, ...]
    flat: bool = False
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def contrasts(self) -> list[str]:
        """Contrasts that are known of any case, sorted."""
        return sorted({case.contrast for case in self.cases if case.contrast})


def split_subjects(subjects: Iterable[str], first: Split, second: Split, share: float) -> dict[str, Split]:
    """Put a share of the subjects into `first` and the others into `second`.

    The order is that of each subject's hash with `SPLIT_SEED`, so it is the same on every machine and does not
    depend on the order of files; one subject more moves at most one other. Where there are two subjects or
    more, neither split is empty.
    """

    def drawn(subject: str) -> str:  # a file's name may be no text
        return hashlib.sha256(f"{SPLIT_SEED}/{subject}".encode(errors="surrogateescape")).hexdigest()

    ordered = sorted(set(subjects), key=drawn)
    count = min(max(round(len(ordered) * share), 1), max(len(ordered) - 1, 1))
    return {subject: first if index < count else second for index, subject in enumerate(ordered)}
