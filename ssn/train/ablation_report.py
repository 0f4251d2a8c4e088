"""One JSON, one Markdown table and one figure of an ablation's runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssn.core.atomic import atomic_path, write_json_atomic, write_text_atomic
from ssn.train.ablation_measure import RECALL
from ssn.train.arms import Arm

COLUMNS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "dice": "Dice",
    "false_positive_rate": f"false positive rate at {RECALL:.0%} recall",
    "rank_correlation": "rank correlation of slice and volume scores",
    "healthy_ml": "false positive ml in healthy volumes",
    "volume_auroc": "volume AUROC",
}
LESION_COLUMNS = ("auroc", "auprc", "dice", "pro")  # of each kind of lesion, in the JSON


def run_values(result: dict[str, Any]) -> dict[str, float | None]:
    """Pick the table's numbers out of one run's result."""
    summary = result["summary"]
    lesions = summary.get("all", {})
    return {name: lesions.get(name) for name in ("auroc", "auprc", "dice")} | {
        "false_positive_rate": result["false_positive_rate_at_recall"],
        "rank_correlation": result["slice_volume_rank_correlation"],
        "healthy_ml": summary["healthy"]["false_positive_ml"],
        "volume_auroc": summary.get("volume_auroc"),
    }


def statistic(values: Sequence[float | None]) -> dict[str, Any]:
    """Values of the seeds that have one, their mean and sample standard deviation (of one seed there is none)."""
    known = [float(value) for value in values if value is not None]
    return {
        "values": known,
        "mean": float(np.mean(known)) if known else None,
        "deviation": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }


def collect(arms: Sequence[Arm], results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Mean and spread of every arm; `results` holds the runs of each arm by its `run` name, a seed each."""
    rows = []
    for arm in arms:
        runs = results[arm.run]
        values = [run_values(result) for result in runs]
        row: dict[str, Any] = {"question": arm.question, "arm": arm.value, "base": arm.run == "base"}
        row["seeds"] = [result["seed"] for result in runs]
        row |= {name: statistic([value[name] for value in values]) for name in COLUMNS}
        row["lesions"] = {
            kind: {name: statistic([run["summary"][kind][name] for run in runs]) for name in LESION_COLUMNS}
            for kind in runs[0]["lesions"]
        }
        rows.append(row)
    return rows


def _cell(statistic: dict[str, Any]) -> str:
    if statistic["mean"] is None:
        return "-"
    spread = "" if statistic["deviation"] is None else f" ± {statistic['deviation']:.3f}"
    return f"{statistic['mean']:.3f}{spread}"


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Make a table a question: mean over seeds ± sample standard deviation."""
    about = (
        "Mean over seeds ± standard deviation; * is the base, from which every other arm differs in this one thing. "
        "Dice and false positive ml are at the threshold that is best for Dice on the validation volumes."
    )
    lines = ["# Ablation", "", about, ""]
    for question in dict.fromkeys(row["question"] for row in rows):
        lines += [f"| {question} | seeds | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
        for row in rows:
            if row["question"] == question:
                cells = " | ".join(_cell(row[name]) for name in COLUMNS)
                lines.append(f"| {row['arm']}{' *' if row['base'] else ''} | {len(row['seeds'])} | {cells} |")
        lines.append("")
    return "\n".join(lines)


PANELS = 3  # a row; four stand two by two
_BAR = 0.42  # inches of height
_SHORT = 0.25  # of the widest bar: a shorter one has no room for its number


def draw(path: Path, rows: Sequence[dict[str, Any]], column: str = "auprc") -> None:
    """Draw one panel a question: each arm's mean a bar, each seed a point, the base's mean a line through all."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    questions = list(dict.fromkeys(row["question"] for row in rows))
    groups = [[row for row in rows if row["question"] == question] for question in questions]
    columns = 2 if len(groups) == 4 else min(PANELS, len(groups))
    lines = [groups[start : start + columns] for start in range(0, len(groups), columns)]
    heights = [0.9 + _BAR * max(len(group) for group in line) for line in lines]
    figure, axes = pyplot.subplots(
        len(lines), columns, figsize=(0.6 + 3.6 * columns, sum(heights) + 0.3), sharex=True, squeeze=False,
        layout="constrained", height_ratios=heights,
    )  # fmt: skip
    base = next((row[column]["mean"] for row in rows if row["base"]), None)
    places = [max(len(group) for group in line) for line in lines for _ in line]
    widest = max((row[column]["mean"] or 0 for row in rows), default=0)
    for panel, question, group, most in zip(axes.flat, questions, groups, places, strict=False):
        for place, row in enumerate(group):
            values, mean = row[column]["values"], row[column]["mean"]
            panel.barh(place, mean or 0, color="#4477aa" if row["base"] else "#bbccdd", height=0.7)
            panel.plot(values, [place] * len(values), "o", color="black", markersize=3)
            if mean is not None:  # in the bar, or behind the points where that is too short
                inside = mean > _SHORT * widest
                panel.text(
                    0 if inside else max(values),
                    place,
                    f"  {mean:.3f}",
                    va="center",
                    fontsize=8,
                    color="white" if row["base"] and inside else "black",
                )
        if base is not None:
            panel.axvline(base, color="#4477aa", linewidth=0.8, linestyle="--")
        panel.set_yticks(range(len(group)), [row["arm"] for row in group])
        # As many places in every panel of a line, so that bars are of one thickness; the first arm on top.
        panel.set_ylim(most - 0.4, -0.6)
        panel.set_title(question, fontsize=10, loc="left", fontweight="bold")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes.flat[max(len(groups) - columns, 0) : len(groups)]:  # the lowest of each column
        panel.tick_params(labelbottom=True)
    for panel in axes.flat[len(groups) :]:
        panel.set_visible(False)
    figure.supxlabel(
        f"{COLUMNS[column]}, mean (bar) and seeds (points); dark: the base, dashed through all", fontsize=9
    )
    try:
        with atomic_path(path, overwrite=True) as temporary:
            figure.savefig(temporary, dpi=150)
    finally:
        pyplot.close(figure)


def write_report(folder: Path, arms: Sequence[Arm], results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Write `ablation.json`, `ablation.md` and `ablation.png`; they are made anew from the runs each time."""
    rows = collect(arms, results)
    write_json_atomic(folder / "ablation.json", rows, overwrite=True)
    write_text_atomic(folder / "ablation.md", as_markdown(rows), overwrite=True)
    draw(folder / "ablation.png", rows)
    return rows
