"""Tables that the report and the page of performance share, as rows of text made from results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high
from typing import Any

from ssn.benchmarks.claim import QUANTITIES, check_claim
from ssn.benchmarks.measure import Ratio
from ssn.benchmarks.results import OURS, Results, rows_of

Row = Mapping[str, Any]
EFFICIENCY_WANTED = 0.9  # of a cohort: the slowest part alone over all parts overlapped
_SAME_MAP = 0.999  # correlation of two maps from which on they are the same
_SAME_SCORE = 0.01  # relative difference of volume scores up to which they are
_SAME_AUPRC = 0.005  # what a step may lose of it
_MEASURES = ("auroc", "auprc", "dice", "pro", "slice_auroc", "slice_auprc")


@dataclass(frozen=True)
class Table:
    """A caption, and cells as text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def number(value: float | None) -> str:
    """Write three digits; "-" where there is none."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def claim_tables(results: Results, model: str, *, ratio: float, memory_ratio: float) -> Iterator[Table]:
    """Yield how a slice pipeline stands against each group of 3D networks."""
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for finding in check_claim(results, model, ratio=ratio, memory_ratio=memory_ratio):
        lines.setdefault((finding.group, finding.method, finding.engine), {})[finding.quantity] = finding.line()
    for group in ("task peer", "ceiling"):
        rows = [
            [method, engine, *(line.get(quantity, "-") for quantity in QUANTITIES)]
            for (own, method, engine), line in lines.items()
            if own == group
        ]
        if rows:
            yield Table(group, (group, "engine", "network", "file to file", "memory"), rows)


def step_table(results: Results, ablation: Sequence[Row] = ()) -> Table | None:
    """List each step that makes the product fast, with what it does to accuracy.

    Parameters
    ----------
    ablation : rows of ssn-train ablate's JSON, for the steps that need another training
    """
    arms = {(row["question"], row["arm"]): row["auprc"] for row in ablation}
    rows = [_step(row, arms) for row in rows_of(results, "variants")]
    header = (
        "step",
        "before, s",
        "after, s",
        "faster",
        "accuracy",
        "AUPRC",
        "map correlation",
        "largest difference, z",
        "score",
    )
    return Table("Steps on a CPU", header, rows) if rows else None


def _step(row: Row, arms: Mapping[tuple[str, str], Row]) -> list[str]:
    if "problem" in row:
        return [row["step"], "-", "-", f"not measured: {row['problem']}", *"-----"]
    cells = [
        row["step"],
        f"{row['before']['median_ms'] / 1000:.3f}",
        f"{row['after']['median_ms'] / 1000:.3f}",
        interval(row["faster"]),
        accuracy_mark(row),
        _auprc(row, arms),
    ]
    if "map_correlation" not in row:
        return [*cells, *"---"]
    return [
        *cells,
        f"{row['map_correlation']:.4f}",
        f"{row['largest_map_difference_z']:.3f}",
        f"{row['volume_score_before']:.2f} to {row['volume_score_after']:.2f}",
    ]


def accuracy_mark(row: Row) -> str:
    """Say whether a step changes what is found: its map, the score of the volume, or lesions.

    Where AUPRC was not measured, another map is taken for a worse one.
    """
    if "map_correlation" not in row:
        return str(row.get("accuracy", "same voxels"))
    before, after = row["volume_score_before"], row["volume_score_after"]
    same = row["map_correlation"] >= _SAME_MAP and abs(after - before) <= _SAME_SCORE * abs(before)
    if "auprc_before" not in row:
        return "kept" if same else "drops accuracy"
    if row["auprc_before"] - row["auprc_after"] > _SAME_AUPRC:
        return "drops accuracy"
    return "kept" if same else "changes the map"


def _auprc(row: Row, arms: Mapping[tuple[str, str], Row]) -> str:
    """Before and after a step; of one that needs another training, mean and spread over the ablation's seeds."""
    if "auprc_before" in row:
        return f"{row['auprc_before']:.4f} to {row['auprc_after']:.4f}"
    asked = row.get("ablation", {})
    found = [arms.get((asked.get("question", ""), asked.get(when, ""))) for when in ("before", "after")]
    known = [one for one in found if one is not None]
    return " to ".join(f"{one['mean']:.3f} ± {one['deviation'] or 0:.3f}" for one in known) if len(known) == 2 else "-"


def cohort_table(results: Results) -> Table | None:
    """Say how much of the slowest part's speed a cohort reaches, whether that is the goal, and what limits it."""
    header = ("model", "volumes a minute", "slowest part", "its time alone of all", "goal of 90 %",
              "computing so many at once alone, of all", "limited by", "peak MB by volumes")  # fmt: skip
    rows = [
        [
            row["method"],
            f"{row['volumes_a_minute']:g}",
            row["slowest"],
            percent(row["efficiency"]),
            goal(row),
            f"{row['at_once']}: {percent(row['efficiency_at_once'])}",
            limit(row),
            ", ".join(f"{one['volumes']}: {one['peak_mb']:.0f}" for one in row.get("scaling", ())) or "-",
        ]
        for row in rows_of(results, "throughput")
    ]
    return Table("Cohorts", header, rows) if rows else None


def goal(row: Row) -> str:
    """Say whether a cohort reaches what is asked: "holds", "does not hold" or "undecided"."""
    return Ratio(**row["efficiency"]).verdict(EFFICIENCY_WANTED)


def limit(row: Row) -> str:
    """Say what bounds a cohort's time from below: its slowest part alone, or the cores that all parts share."""
    if "cpu_s" not in row:
        return "-"
    alone = median_high(row["samples_s"][row["slowest"]])
    shared = row["cpu_s"] / row["cores"]
    if shared > alone:
        return f"cores: {row['cpu_s']:.2f} s of CPU on {row['cores']} take {shared:.2f} s, {row['slowest']} {alone:.2f}"
    return f"{row['slowest']}: {alone:.2f} s; all {row['cpu_s']:.2f} s of CPU on {row['cores']} cores {shared:.2f} s"


def accuracy_of(row: Row, accuracy: Mapping[str, Any] | None) -> Row:
    """Find what is known of the accuracy of a method over all lesions; empty if nothing is.

    Parameters
    ----------
    row : of latency.json
    accuracy : JSON of ssn-bench accuracy; it comes before what the bundle has on record
    """
    name = OURS if row.get("accuracy") else row["method"]
    measured = (accuracy or {}).get(name, {}).get("summary", {}).get("all")
    return measured or row.get("accuracy") or {}


def accuracy_table(accuracy: Mapping[str, Any]) -> Table:
    """List each method's accuracy by kind of lesion."""
    rows = [
        [method, label, *(number(values.get(name)) for name in _MEASURES)]
        for method, found in accuracy.items()
        if isinstance(found, Mapping)
        for label, values in found.get("summary", {}).items()
        if isinstance(values, Mapping) and "auroc" in values
    ]
    return Table("Accuracy", ("method", "lesions", *_MEASURES), rows)


def interval(ratio: Row) -> str:
    """Write a ratio with its interval."""
    return f"{ratio['value']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def percent(ratio: Row) -> str:
    """Write a share with its interval."""
    return f"{100 * ratio['value']:.0f} % [{100 * ratio['low']:.0f}, {100 * ratio['high']:.0f}]"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write cells as a Markdown table."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    first, *others = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([first, "|" + "---|" * len(header), *others])
