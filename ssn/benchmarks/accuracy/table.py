"""Accuracy of several methods as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from ssn.benchmarks.pages.tables import markdown_table
from ssn.train.cases import LESION_SIZES

_TITLES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "pro": "PRO",
    "slice_auroc": "slice AUROC",
    "slice_auprc": "slice AUPRC",
    "dice_healthy": "Dice, healthy threshold",
    "dice": "Dice, validation threshold",
    "dice_oracle": "Dice, oracle (not to be used)",
}
_LEADS = ("auprc", "dice_healthy", "dice")  # what of them the first method is compared with the others in
# Groups of all lesions by size, and what is no group of lesions.
_SIZES = ("all", *LESION_SIZES)
Results = Mapping[str, Mapping[str, Any]]


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def groups(results: Results) -> list[str]:
    """List the groups of lesions that the methods were measured on: sizes first, then kinds."""
    found = next(iter(results.values()))["summary"]
    named = [name for name, values in found.items() if isinstance(values, Mapping) and "auroc" in values]
    return sorted(named, key=lambda name: (_SIZES.index(name) if name in _SIZES else len(_SIZES), name))


def overall(results: Results) -> str:
    """Make the table of all lesions, a method a row."""
    header = ["method", *_TITLES.values(), "ml wrong in a healthy volume", "volume AUROC"]
    rows = []
    for method, found in results.items():
        summary = found["summary"]
        values = [_number(summary["all"][name]) for name in _TITLES]
        wrong = _number(summary["healthy"]["false_positive_ml_healthy"], 1)
        rows.append([method, *values, wrong, _number(summary.get("volume_auroc"))])
    return markdown_table(header, rows)


def leads(results: Results) -> str:
    """Tell how far the first method is ahead of each other one on the same lesions, with intervals over volumes."""
    (first, ours), *others = results.items()
    header = [f"{first}, less", *(_TITLES[metric] for metric in _LEADS)]
    rows = []
    for method, found in others:
        cells = []
        for metric in _LEADS:
            pairs = zip(ours["volumes"], found["volumes"], strict=True)
            differences = [own[metric] - other[metric] for own, other in pairs if own["lesion"]]
            cells.append(f"{np.mean(differences):+.3f} [{_interval(differences)}]")
        rows.append([method, *cells])
    return markdown_table(header, rows)


def _interval(differences: Sequence[float]) -> str:
    """95 % percentile bootstrap of a mean; of fewer than three values there is none."""
    if len(differences) < 3:
        return "-"
    found = bootstrap((differences,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return f"{found.low:+.3f}, {found.high:+.3f}"


def by_group(results: Results, metric: str) -> str:
    """Make one metric's table, a method a row and a group of lesions a column."""
    names = groups(results)
    volumes = next(iter(results.values()))["summary"]
    header = ["method", *(f"{name} ({volumes[name]['volumes']})" for name in names)]
    rows = [[method, *(_number(found["summary"][name][metric]) for name in names)] for method, found in results.items()]
    return markdown_table(header, rows)


def controls(results: Results) -> str:
    """Make the table of healthy volumes from elsewhere."""
    header = [
        "control",
        "method",
        "volumes",
        "AUROC against healthy test volumes (0.5 is right)",
        "AUROC of lesioned test volumes against the control",
        "ml wrong in a control volume",
    ]
    names = list(next(iter(results.values()))["controls"])
    rows = []
    for name in names:
        for method, found in results.items():
            values = found["controls"][name]
            ranks = (_number(values["auroc_against_healthy"]), _number(values["auroc_of_lesions"]))
            rows.append([name, method, str(values["volumes"]), *ranks, _number(values["false_positive_ml_healthy"], 1)])
    return markdown_table(header, rows)


def markdown(results: Results) -> str:
    """Everything as Markdown, to be included in a page."""
    return "\n\n".join(_parts(results)) + "\n"


def _parts(results: Results) -> Iterator[str]:
    yield (
        "Means over test volumes, brain voxels only. The healthy threshold is the 99.5 % quantile of a method's map "
        "over healthy calibration volumes, of a trained detector that of its calibration; ml wrong are those above it. "
        "The oracle's threshold was fitted to the test volumes themselves: it bounds what a threshold could do, and is "
        "not to be compared with another column."
    )
    yield overall(results)
    if len(results) > 1:
        yield (
            f"How far `{next(iter(results))}` is ahead on the same lesions: mean difference and its 95 % interval over "
            "test volumes (bootstrap). Where it holds 0 nothing is decided; another training would change it besides."
        )
        yield leads(results)
    yield "AUPRC by size and kind of lesion (number of volumes):"
    yield by_group(results, "auprc")
    yield "Dice at the healthy threshold by size and kind of lesion:"
    yield by_group(results, "dice_healthy")
    if next(iter(results.values()))["controls"]:
        yield (
            "Healthy volumes from elsewhere. Where the first AUROC is far from 0.5, on either side, the method's "
            "volume score measures the source, and an AUROC between data sets would too:"
        )
        yield controls(results)
