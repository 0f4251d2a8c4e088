"""Open a data set: recognise its layout, choose its contrast, take one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ssn.core.atomic import printable
from ssn.core.errors import DataError
from ssn.core.hashed_files import file_sha256
from ssn.runtime.jobs import is_nifti
from ssn.train.cases import Case, Dataset, Layout, Split
from ssn.train.check import refuse_unusable
from ssn.train.layouts import COHORT_FILE, READERS, TREES


def recognise(path: Path) -> Layout:
    """Tell a data set's layout from its path.

    Raises
    ------
    DataError
        If it has none of the known layouts; the message shows all of them.
    """
    if path.is_file() and path.suffix.lower() == ".csv":
        return "csv"
    if path.is_dir():
        if not any(path.iterdir()):
            raise DataError(f"{printable(path)}: is an empty folder; expected {_all_trees()}")
        if (path / COHORT_FILE).is_file():
            return "csv"
        # The named layouts first: IXI's files would do for a folder of NIfTI too. With masks beside them they are one.
        with_masks = (path / "masks").is_dir()
        for layout in ("brats", *(() if with_masks else ("ixi",)), "br35h", "folder"):
            try:
                READERS[layout](path)
            except DataError:
                continue
            return layout
        raise DataError(f"{printable(path)}: has none of the known layouts: {_all_trees()}")
    what = "is one volume, not a data set" if is_nifti(path) and path.exists() else "is no folder and no .csv file"
    raise DataError(f"{printable(path)}: {what}; expected {_all_trees()}")


def _all_trees() -> str:
    return "; or ".join(f"{layout}: {tree}" for layout, tree in TREES.items())


def read_dataset(path: Path, layout: Layout | None = None) -> Dataset:
    """List a data set's cases, of all contrasts; `layout` forces one, None recognises it.

    Raises
    ------
    DataError
        If the path is not laid out so; the message shows how it should be.
    """
    return READERS[layout or recognise(path)](path)


def of_contrast(dataset: Dataset, contrast: str | None) -> Dataset:
    """Keep one contrast's cases.

    Where nothing says the contrast of any case, all are taken for what the caller says they are.

    Raises
    ------
    DataError
        If there are several and none was chosen, or none of the one that was.
    """
    if contrast is None:
        if len({case.contrast for case in dataset.cases}) > 1:
            raise DataError(mixed_contrasts(dataset))
        return dataset
    wanted = contrast.lower()
    named = (wanted,) if dataset.contrasts else (None,)
    cases = tuple(replace(case, contrast=wanted) for case in dataset.cases if case.contrast in named)
    if not cases:
        raise DataError(f"{printable(dataset.root)}: has no {wanted} volume, only {', '.join(dataset.contrasts)}")
    return replace(dataset, cases=cases)


def mixed_contrasts(dataset: Dataset) -> str:
    """Say of which contrasts a data set is, with a file of each."""
    examples = {case.contrast or "unknown": case.name for case in reversed(dataset.cases)}
    shown = ", ".join(f"{contrast} ({name})" for contrast, name in sorted(examples.items()))
    return f"{printable(dataset.root)}: mixed modalities: {shown}; choose one with --contrast"


def select(dataset: Dataset, split: Split) -> list[Case]:
    """Cases of one split.

    Raises
    ------
    DataError
        If there are none.
    """
    cases = [case for case in dataset.cases if case.split == split]
    if not cases:
        found = sorted({case.split for case in dataset.cases})
        measures = split in ("validation", "test") and dataset.layout == "folder"
        remedy = ": what is measured on has its lesion masks in a folder masks" if measures else ""
        raise DataError(
            f"{printable(dataset.root)}: has no volume in split {split!r}, only in {', '.join(found)} "
            f"(layout {dataset.layout}); docs/train.md says how it tells splits{remedy}"
        )
    return cases


def _open(path: Path, layout: Layout | None, contrast: str | None) -> Dataset:
    dataset = of_contrast(read_dataset(path, layout), contrast)
    if dataset.flat:
        raise DataError(
            f"{printable(path)}: holds 2D images (layout {dataset.layout}); only ssn-train finetune takes them"
        )
    return dataset


def open_split(path: Path, split: Split, layout: Layout | None = None, contrast: str | None = None) -> list[Case]:
    """Cases of one split of a 3D data set, checked by header and name.

    Raises
    ------
    DataError
        If the layout is another, the split empty, or anything in it unusable; the file is named.
    """
    dataset = _open(path, layout, contrast)
    cases = select(dataset, split)
    refuse_unusable(dataset, cases)
    return cases


def open_measured(path: Path, layout: Layout | None = None, contrast: str | None = None) -> list[Case]:
    """Cases to measure on where no threshold is chosen on any: those that test, and those that would validate.

    A table says itself which are for testing, so of one it is the test split alone.

    Raises
    ------
    DataError
        As `open_split`.
    """
    dataset = _open(path, layout, contrast)
    splits = ("test",) if dataset.layout == "csv" else ("test", "validation")
    cases = [case for case in dataset.cases if case.split in splits] or select(dataset, "test")
    refuse_unusable(dataset, cases)
    return cases


def refuse_without_lesion(cases: Sequence[Case]) -> None:
    """Raise DataError if none of the cases, of one split, has a mask: said before any computing."""
    if not any(case.mask for case in cases):
        raise DataError(f"no {cases[0].split} volume has a lesion ({cases[0].name} and the others have no mask)")


def refuse_shared(learned: Sequence[Case], measured: Sequence[Case]) -> None:
    """Refuse a volume that is used for two purposes under two names.

    Within a data set `refuse_unusable` says so by name; names of two data sets say nothing.

    Raises
    ------
    DataError
        If two files have the same contents; both are named.
    """
    known = {file_sha256(case.image): case for case in learned}
    for case in measured:
        twin = known.get(file_sha256(case.image))
        if twin is not None:
            raise DataError(
                f"{printable(case.image)}: is in split {case.split!r}, and as {printable(twin.image)} in split "
                f"{twin.split!r}; keep it in one"
            )


def open_healthy(path: Path, contrast: str | None) -> list[Case]:
    """Cases without a mask of a 3D data set, of whatever split, checked by header and name.

    Raises
    ------
    DataError
        As `open_split`, and if every volume has a mask.
    """
    dataset = _open(path, None, contrast)
    cases = [case for case in dataset.cases if case.mask is None]
    if not cases:
        raise DataError(f"{printable(path)}: has no healthy volume (one without a mask)")
    refuse_unusable(dataset, cases)
    return cases
