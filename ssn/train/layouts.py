"""Readers of data sets as they lie on disk: a CSV, IXI, BraTS2021, Br35H, and a folder of NIfTI.

docs/train.md, 'Data sets'. A reader looks at names only: what the files hold is
`ssn.train.check`'s to see.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Container
from itertools import pairwise
from pathlib import Path

from ssn.core.atomic import printable
from ssn.core.errors import DataError
from ssn.runtime.jobs import OWN_OUTPUTS, is_nifti, volume_stem
from ssn.train.cases import RESERVED_KINDS, SPLITS, Case, Dataset, Layout, split_subjects

COHORT_FILE = "cohort.csv"
CALIBRATION_SHARE = 0.2  # of a healthy data set's subjects; the others train
VALIDATION_SHARE = 0.5  # of a data set with lesions; the others test
NORMALS_TRAIN_SHARE = 2 / 3  # of Br35H's healthy images, the paper's 1,000 of 1,500
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

# One line each, because an error is one line.
TREES: dict[Layout, str] = {
    "csv": "PATH.csv with columns image,mask,split (paths from the table's folder; mask empty in healthy volumes; "
    "split one of train, calibration, validation, test; lesion, subject and contrast if known)",
    "ixi": "PATH/IXI002-Guys-0828-T1.nii.gz, or PATH/T1/IXI002-Guys-0828-T1.nii.gz",
    "brats": "PATH/BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz",
    "br35h": "PATH/{yes,no,pred}/*.jpg, or Br35H-Mask-RCNN's PATH/{TRAIN,VAL,TEST}/*.jpg",
    "folder": "PATH/NAME.nii.gz or PATH/images/NAME.nii.gz, and, for volumes with a lesion, PATH/masks/NAME.nii.gz",
}

_IXI = re.compile(r"(IXI\d{3})-[^-]+-\d+-(T1|T2|PD)\.nii(\.gz)?", re.IGNORECASE)
_BRATS = re.compile(r"BraTS2021_\d{5}")
_BRATS_CONTRASTS = ("t1", "t1ce", "t2", "flair")
_CONTRAST_IN_NAME = re.compile(r"(?:^|[-_.])(t1ce|t1c|t1gd|t1w?|t2w?|flair|pd)(?=[-_.]|$)", re.IGNORECASE)
_SAME_CONTRAST = {"t1c": "t1ce", "t1gd": "t1ce", "t1w": "t1", "t2w": "t2"}
_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+|IXI\d{3}(?=-)")
_MASK_NAME = re.compile(r"[-_.](mask|seg|label|lesion)$", re.IGNORECASE)


def stem(path: Path) -> str:
    """File name without `.nii`, `.nii.gz` or the suffix of a picture."""
    return volume_stem(path) if is_nifti(path) else path.stem


def volumes_in(folder: Path) -> list[Path]:
    """NIfTI files of a folder, not of its subfolders, by name."""
    return sorted(path for path in folder.iterdir() if is_nifti(path)) if folder.is_dir() else []


def pictures_in(folder: Path) -> list[Path]:
    """JPEG and PNG files of a folder, not of its subfolders, by name."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def contrast_of(name: str) -> str | None:
    """Contrast that a file name states between separators (`sub-01_T2w`), or None."""
    found = _CONTRAST_IN_NAME.findall(name)
    return _contrast(found[-1]) if found else None


def _contrast(said: str) -> str:
    return _SAME_CONTRAST.get(said.lower(), said.lower())


def wrong_layout(path: Path, layout: Layout, what: str) -> DataError:
    """Make the error of a path that is not laid out as `layout` is."""
    return DataError(f"{printable(path)}: {what}; layout {layout} expects {TREES[layout]}")


def read_csv(path: Path) -> Dataset:
    """Read a table of volumes, `cohort.csv` of `ssn-train synth` among them."""
    table = path / COHORT_FILE if path.is_dir() else path
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = list(reader.fieldnames or ())
            if twice := sorted({name for name in columns if columns.count(name) > 1}):
                raise wrong_layout(table, "csv", f"has two columns {', '.join(twice)}")
            missing = {"image", "mask", "split"} - set(columns)
            if missing:
                raise wrong_layout(table, "csv", f"has no column {', '.join(sorted(missing))}")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise wrong_layout(table, "csv", f"cannot be read as a table ({error})") from error
    cases = tuple(_row_case(table, number, row) for number, row in rows)
    if not cases:
        raise wrong_layout(table, "csv", "has no row")
    return Dataset(table, "csv", cases)


def _row_case(table: Path, number: int, row: dict[str, str | None]) -> Case:
    value = {name: (text or "").strip() for name, text in row.items() if isinstance(name, str)}
    where = f"{printable(table)}, line {number}"
    split = next((split for split in SPLITS if split == value["split"]), None)
    if split is None:
        raise DataError(f"{where}: split is {value['split']!r}; it must be one of {', '.join(SPLITS)}")
    if not value["image"]:
        raise DataError(f"{where}: has no image; give a path from the table's folder")
    try:
        volume_ml = float(value["volume_ml"]) if value.get("volume_ml") else None
    except ValueError:
        volume_ml = math.nan
    if volume_ml is not None and not 0 <= volume_ml < math.inf:
        raise DataError(f"{where}: volume_ml is {value['volume_ml']!r}; it must be a number of millilitres")
    if value.get("lesion") in RESERVED_KINDS:
        raise DataError(f"{where}: lesion is {value['lesion']!r}, which is what tables call a group; name the kind")
    if value.get("lesion") and not value["mask"]:
        raise DataError(
            f"{where}: has lesion {value['lesion']!r} and no mask, so it would count as healthy; give its mask, or "
            "leave it out"
        )
    image = table.parent / value["image"]
    synthetic = f"{value['template']}-{value['seed']}" if value.get("seed") and value.get("template") else ""
    return Case(
        image=image,
        name=value["image"],
        subject=value.get("subject") or synthetic or stem(image),
        split=split,
        mask=table.parent / value["mask"] if value["mask"] else None,
        lesion=(value.get("lesion") or "lesion") if value["mask"] else "",
        volume_ml=volume_ml,
        contrast=_contrast(value["contrast"]) if value.get("contrast") else contrast_of(stem(image)),
    )


def _with_subfolders(folder: Path) -> list[Path]:
    return [folder, *sorted(f for f in folder.iterdir() if f.is_dir())] if folder.is_dir() else []


def _left_out(path: Path, taken: Container[Path | None], layout: Layout) -> tuple[str, ...]:
    """List the volumes in a folder and its subfolders that a reader does not take: silence would lose them."""
    return tuple(
        f"{printable(file)}: is not placed and named as layout {layout} has it, and would be left out; move it "
        "elsewhere, or list all in a table"
        for folder in _with_subfolders(path)
        for file in volumes_in(folder)
        if file not in taken
    )


def read_ixi(path: Path) -> Dataset:
    """Read IXI: healthy volumes, flat or in a folder a contrast; split by subject, so that T1 and T2 agree."""
    named = [
        (file, match[1].upper(), match[2].lower())
        for folder in _with_subfolders(path)
        for file in volumes_in(folder)
        if (match := _IXI.fullmatch(file.name))
    ]
    if not named:
        raise wrong_layout(path, "ixi", "holds no file of that name")
    splits = split_subjects((subject for _, subject, _ in named), "calibration", "train", CALIBRATION_SHARE)
    cases = tuple(
        Case(file, str(file.relative_to(path)), subject, splits[subject], contrast=contrast)
        for file, subject, contrast in named
    )
    return Dataset(path, "ixi", cases, problems=_left_out(path, {file for file, *_ in named}, "ixi"))


def read_brats(path: Path) -> Dataset:
    """Read BraTS2021: every volume has a tumour, one half of the subjects is for validation, the other for testing.

    A contrast that any subject has is expected of all; the segmentation always is.
    """
    subjects = (
        sorted(f.name for f in path.iterdir() if f.is_dir() and _BRATS.fullmatch(f.name)) if path.is_dir() else []
    )
    present = [c for c in _BRATS_CONTRASTS if any(_brats_file(path, s, c).exists() for s in subjects)]
    if not present:
        raise wrong_layout(path, "brats", "holds no folder and volume of that name")
    splits = split_subjects(subjects, "validation", "test", VALIDATION_SHARE)
    cases = []
    for subject in subjects:
        mask = _brats_file(path, subject, "seg")
        for contrast in present:
            image = _brats_file(path, subject, contrast)
            name = str(image.relative_to(path))
            cases.append(Case(image, name, subject, splits[subject], mask, "tumour", contrast=contrast))
    expected = {file for case in cases for file in (case.image, case.mask)}
    return Dataset(path, "brats", tuple(cases), problems=_left_out(path, expected, "brats"))


def _brats_file(path: Path, subject: str, kind: str) -> Path:
    packed = path / subject / f"{subject}_{kind}.nii.gz"
    plain = packed.with_suffix("")
    return plain if plain.exists() and not packed.exists() else packed


def read_br35h(path: Path) -> Dataset:
    """Read Br35H (2D): healthy images train and validate, images with a tumour are for testing.

    The Mask-RCNN variant (by itself, or inside the whole download) holds images with a tumour only.
    """
    normals = pictures_in(path / "no")
    splits = split_subjects((stem(p) for p in normals), "train", "validation", NORMALS_TRAIN_SHARE)
    cases = [Case(p, f"no/{p.name}", f"no/{stem(p)}", splits[stem(p)]) for p in normals]
    variant = path / "Br35H-Mask-RCNN"
    folders = [path / "yes"] + [top / name for top in (path, variant) for name in ("TRAIN", "VAL", "TEST")]
    for folder in folders:
        for picture in pictures_in(folder):
            name = picture.relative_to(path)
            cases.append(Case(picture, str(name), str(name.with_suffix("")), "test", lesion="tumour"))
    if not cases:
        raise wrong_layout(path, "br35h", "holds no image in such a folder")
    unlabelled = len(pictures_in(path / "pred"))
    notes = (f"pred: {unlabelled} unlabelled images, not used",) if unlabelled else ()
    return Dataset(path, "br35h", tuple(cases), flat=True, notes=notes)


def read_folder(path: Path) -> Dataset:
    """Read a folder of NIfTI.

    Without masks the volumes are taken for healthy ones and split into train and calibration. With a mask
    folder they are for validation and testing, those without a mask as healthy volumes.
    """
    folder = path / "images" if (path / "images").is_dir() else path
    files = volumes_in(folder)
    marked = volumes_in(path / "masks")
    masks = {stem(mask): mask for mask in marked}
    inferred = {stem(file).removesuffix(OWN_OUTPUTS[0]) for file in files if stem(file).endswith(OWN_OUTPUTS[0])}
    written = {name + end for name in inferred for end in OWN_OUTPUTS}
    images = [file for file in files if stem(file) not in written and not _MASK_NAME.search(stem(file))]
    if not images:
        raise wrong_layout(path, "folder", "holds no NIfTI volume")
    problems = [
        f"{file}: is what ssn-infer writes; move its outputs out of the data set"
        if stem(file) in written
        else f"{file}: looks like a mask among the images; move it to {path / 'masks'}"
        for file in files
        if file not in images
    ]
    known = {stem(image) for image in images}
    problems += [f"{mask}: is the mask of no image in {folder}" for name, mask in masks.items() if name not in known]
    problems += [
        f"{first} and {second.name}: have the same name; keep one"
        for files in (images, marked)
        for first, second in pairwise(files)
        if stem(first) == stem(second)
    ]
    if (path / "masks").is_dir() and not masks:
        problems.append(
            f"{path / 'masks'}: holds no mask, so all volumes would count as healthy; fill it, or remove it"
        )
    problems += _left_out(path, {*files, *marked}, "folder")
    subjects = {image: _subject(image) for image in images}
    if masks:
        splits = split_subjects(subjects.values(), "validation", "test", VALIDATION_SHARE)
    else:
        splits = split_subjects(subjects.values(), "calibration", "train", CALIBRATION_SHARE)
    cases = tuple(
        Case(
            image=image,
            name=str(image.relative_to(path)),
            subject=subject,
            split=splits[subject],
            mask=masks.get(stem(image)),
            lesion="lesion" if stem(image) in masks else "",
            contrast=contrast_of(stem(image)),
        )
        for image, subject in subjects.items()
    )
    return Dataset(path, "folder", cases, problems=tuple(problems))


def _subject(image: Path) -> str:
    """Who it is, where the name says so as BIDS or IXI do: sessions and contrasts of one go into one split."""
    found = _SUBJECT.match(stem(image))
    return found[0] if found else stem(image)


READERS: dict[Layout, Callable[[Path], Dataset]] = {
    "csv": read_csv,
    "ixi": read_ixi,
    "brats": read_brats,
    "br35h": read_br35h,
    "folder": read_folder,
}
