"""The page docs/performance.md, made from results: every number on it was measured by a command of this repository."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ssn.benchmarks.claim import QUANTITIES, check_claim
from ssn.benchmarks.results import Results, rows_of


def performance_page(results: Results, *, ratio: float, memory_ratio: float) -> str:
    """Markdown: where it was measured, the claim, and each step that was tried."""
    return "\n\n".join(_parts(results, ratio, memory_ratio)) + "\n"


def _parts(results: Results, ratio: float, memory_ratio: float) -> Iterator[str]:
    found = next(iter(results.values()))["environment"]
    yield "# Performance"
    yield (
        f"Measured on {found['cpu']}, {found.get('threads', found['cores'])} threads, commit {found['commit']}, with "
        "`ssn-bench` (`scripts/cpu_suite` runs all of it); this page is made by "
        "`ssn-bench performance RESULTS -o docs/performance.md`. [bench.md](bench.md) says how it is measured."
    )
    models = [row["method"] for row in rows_of(results, "latency") if row.get("group") == "slice pipeline"]
    for model in dict.fromkeys(models):
        yield f"## {model} against 3D networks"
        yield (
            "How many times longer, and larger, the 3D network is, with a 95 % interval; whether "
            f"{ratio:g} times in time and {memory_ratio:g} times in memory hold."
        )
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
                yield _table((group, "engine", "network", "file to file", "memory"), rows)
    steps = list(rows_of(results, "variants"))
    if steps:
        yield "## Steps on a CPU"
        yield (
            "Time from the file to the map, before and after each step, and how well both maps agree. A step is in the "
            "product if it is faster and the maps agree."
        )
        header = ("step", "before, s", "after, s", "faster", "map correlation", "largest difference, z")
        yield _table(header, [_step(row) for row in steps])
    cohorts = list(rows_of(results, "throughput"))
    if cohorts:
        yield "## Cohorts"
        columns = ("model", "volumes a minute", "slowest part", "its time alone of all", "peak MB by volumes")
        yield _table(columns, [_cohort(row) for row in cohorts])


def _step(row: Mapping[str, Any]) -> list[str]:
    if "problem" in row:
        return [row["step"], "-", "-", f"not measured: {row['problem']}", "-", "-"]
    faster = row["faster"]
    return [
        row["step"],
        f"{row['before']['median_ms'] / 1000:.3f}",
        f"{row['after']['median_ms'] / 1000:.3f}",
        f"{faster['value']:.2f}x [{faster['low']:.2f}, {faster['high']:.2f}]",
        f"{row['map_correlation']:.4f}" if "map_correlation" in row else "same voxels",
        f"{row['largest_map_difference_z']:.3f}" if "map_correlation" in row else "0",
    ]


def _cohort(row: Mapping[str, Any]) -> list[str]:
    share = row["efficiency"]
    peaks = ", ".join(f"{one['volumes']}: {one['peak_mb']:.0f}" for one in row.get("scaling", ()))
    value = f"{100 * share['value']:.0f} % [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"
    return [row["method"], f"{row['volumes_a_minute']:g}", row["slowest"], value, peaks or "-"]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])
