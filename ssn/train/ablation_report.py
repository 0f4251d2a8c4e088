"""One JSON, one Markdown table and one figure of an ablation's runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssn.core.atomic import atomic_path, write_text_atomic
from ssn.train.ablation_measure import RECALL
from ssn.train.arms import Arm

COLUMNS = {
    "auprc": "AUPRC",
    "auroc": "AUROC",
    "dice": "Dice",
    "pro": "PRO",
    "slice_auprc": "slice AUPRC",
    "volume_auroc": "volume AUROC",
    "false_positive_rate": f"false positive rate at {RECALL:.0%} recall",
    "rank_correlation": "rank correlation of slice and volume scores",
}
Values = dict[str, list[float]]


def run_values(result: dict[str, Any]) -> dict[str, float | None]:
    """Pick the table's numbers out of one run's result."""
    summary = result["summary"]
    lesions = summary.get("all", {})
    return {name: lesions.get(name) for name in ("auprc", "auroc", "dice", "pro", "slice_auprc")} | {
        "volume_auroc": summary.get("volume_auroc"),
        "false_positive_rate": result["false_positive_rate_at_recall"],
        "rank_correlation": result["slice_volume_rank_correlation"],
    }


def collect(arms: Sequence[Arm], results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Mean and spread of every arm; `results` holds the runs of each arm by its `run` name, a seed each."""
    rows = []
    for arm in arms:
        values = [run_values(result) for result in results[arm.run]]
        row: dict[str, Any] = {"question": arm.question, "arm": arm.value, "base": arm.run == "base"}
        row["seeds"] = [result["seed"] for result in results[arm.run]]
        for name in COLUMNS:
            known = [float(number) for value in values if (number := value[name]) is not None]
            row[name] = {
                "values": known,
                "mean": float(np.mean(known)) if known else None,
                # Sample deviation: of one seed there is none.
                "deviation": float(np.std(known, ddof=1)) if len(known) > 1 else None,
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
    about = "Mean over seeds ± standard deviation; * is the base, from which every other arm differs in this one thing."
    lines = ["# Ablation", "", about, ""]
    for question in dict.fromkeys(row["question"] for row in rows):
        lines += [f"| {question} | seeds | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
        for row in rows:
            if row["question"] == question:
                cells = " | ".join(_cell(row[name]) for name in COLUMNS)
                lines.append(f"| {row['arm']}{' *' if row['base'] else ''} | {len(row['seeds'])} | {cells} |")
        lines.append("")
    return "\n".join(lines)


def draw(path: Path, rows: Sequence[dict[str, Any]], column: str = "auprc") -> None:
    """Draw one panel a question: each seed a point, each arm's mean a bar."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    questions = list(dict.fromkeys(row["question"] for row in rows))
    figure, axes = pyplot.subplots(
        1, len(questions), figsize=(1 + 2.6 * len(questions), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, question in zip(axes[0], questions, strict=True):
        own = [row for row in rows if row["question"] == question]
        for place, row in enumerate(own):
            values = row[column]["values"]
            panel.bar(place, row[column]["mean"] or 0, color="#4477aa" if row["base"] else "#bbccdd", width=0.7)
            panel.plot([place] * len(values), values, "o", color="black", markersize=3)
        panel.set_xticks(range(len(own)), [row["arm"] for row in own], rotation=35, ha="right")
        panel.set_title(question)
    axes[0][0].set_ylabel(COLUMNS[column])
    try:
        with atomic_path(path, overwrite=True) as temporary:
            figure.savefig(temporary, dpi=150)
    finally:
        pyplot.close(figure)


def write_report(folder: Path, arms: Sequence[Arm], results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Write `ablation.json`, `ablation.md` and `ablation.png`; they are made anew from the runs each time."""
    rows = collect(arms, results)
    write_text_atomic(folder / "ablation.json", json.dumps(rows, indent=1) + "\n", overwrite=True)
    write_text_atomic(folder / "ablation.md", as_markdown(rows), overwrite=True)
    draw(folder / "ablation.png", rows)
    return rows
