"""Which volumes an ablation trains, calibrates and measures on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssn.train.cases import Case, Layout, Split
from ssn.train.datasets import open_split, read_dataset, refuse_shared, refuse_without_lesion

_Place = tuple[Path, Layout | None, str | None]  # a data set, how it lies, and the contrast to take of it


@dataclass(frozen=True)
class AblationData:
    """The cases of each split."""

    train: list[Case]
    calibration: list[Case]
    validation: list[Case]
    test: list[Case]


def open_ablation_data(
    data: Path,
    layout: Layout | None = None,
    contrast: str | None = None,
    *,
    measure_on: Path | None = None,
    measure_contrast: str | None = None,
    calibrate_on: Path | None = None,
) -> AblationData:
    """Open the splits of a data set; some of them are another one's, where one is given.

    Parameters
    ----------
    layout : of `data`; the others lie as they lie
    measure_on : has the test split, and the validation split unless it has no such volume
    measure_contrast : of `measure_on`, where it is another than `contrast`
    calibrate_on : has the calibration split; of the contrast that is measured, if it is `measure_on`

    Raises
    ------
    DataError
        As `open_split`, `refuse_shared` and `refuse_without_lesion`.
    """
    own: _Place = (data, layout, contrast)
    measured: _Place = (measure_on, None, measure_contrast or contrast) if measure_on else own
    calibrated = own
    if calibrate_on:
        calibrated = measured if calibrate_on == measure_on else (calibrate_on, None, contrast)
    # A contrast or lesion never seen in training need not bring volumes to choose a threshold on.
    elsewhere = measure_on and any(case.split == "validation" for case in read_dataset(measure_on).cases)
    found = AblationData(
        train=_opened("train", own),
        calibration=_opened("calibration", calibrated),
        validation=_opened("validation", measured if elsewhere else own),
        test=_opened("test", measured),
    )
    refuse_shared(found.train, [*found.calibration, *found.validation, *found.test])
    refuse_shared(found.calibration, [*found.validation, *found.test])
    refuse_shared(found.validation, found.test)
    for cases in (found.validation, found.test):
        refuse_without_lesion(cases)
    return found


def _opened(split: Split, place: _Place) -> list[Case]:
    path, layout, contrast = place
    return open_split(path, split, layout, contrast)
