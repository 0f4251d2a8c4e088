"""One self-contained report of what was measured: HTML with charts, or Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from statistics import median_high
from typing import Any

from ssn.benchmarks.pages.rendering import Section
from ssn.benchmarks.pages.tables import (
    Table,
    accuracy_of,
    accuracy_table,
    claim_tables,
    goal,
    limit,
    number,
    percent,
    step_table,
)
from ssn.benchmarks.results import Results, rows_of

Row = Mapping[str, Any]


def build_sections(
    results: Results,
    *,
    ratio: float,
    memory_ratio: float,
    accuracy: Mapping[str, Any] | None = None,
    ablation: Sequence[Row] = (),
    charts: bool = True,
) -> Iterator[Section]:
    """Yield the report's sections; without `charts` matplotlib is not needed."""
    yield from _claim_sections(results, ratio, memory_ratio)
    for kind, value, unit, title in (
        ("latency", "file_s", "s a volume, file to file, logarithmic", "Latency"),
        ("memory", "peak_mb", "peak MB of the process, logarithmic", "Memory"),
    ):
        rows = list(rows_of(results, "latency" if kind == "latency" else "memory"))
        if rows:
            yield Section(title, text=_TEXT[kind])
        for engine in dict.fromkeys(row["engine"] for row in rows):
            own = [_flat(row) for row in rows if row["engine"] == engine]
            drawn = [row for row in own if value in row]
            section = Section(engine, 3, _problem(own))
            if any("group" in row for row in own):
                section.header, section.rows = _table(own, kind, accuracy)
            if charts and drawn:
                from ssn.benchmarks.pages.charts import bars

                section.charts.append(bars(drawn, value, unit))
            yield section
    yield from _stage_sections(results, charts)
    yield from _step_sections(results, ablation)
    yield from _throughput_sections(results, charts)
    yield from _roofline_sections(results, charts)
    if accuracy is not None:
        text = "As ssn-bench accuracy measured it. 3D networks here have random weights, so they have no accuracy."
        yield _section(accuracy_table(accuracy), text)
    yield _environment_section(results)


def _section(table: Table, text: str = "", level: int = 2) -> Section:
    return Section(table.title, level, text, table.header, table.rows)


_TEXT = {
    "latency": (
        "Medians of interleaved rounds. Network: the networks alone. File: from a gzipped NIfTI to map and mask on "
        "disk; a 3D network's is its own time plus reading, normalising, comparing and writing, timed in the same "
        "rounds. Heavy networks are timed on a part of the volume, or on one of their steps or windows; the column "
        "'times' says how many times that was taken. AUROC, AUPRC: of voxels, over all lesions, where they are known; "
        '"-": the weights are random, or the precision is not the one that accuracy was measured in.'
    ),
    "memory": (
        "Peak resident memory of a fresh process that takes one volume from file to file, Python and its libraries "
        "included. Ready: until the model could run. First volume: with what an engine does only once. Process: from "
        "nothing to files on disk. Networks see the whole volume; a diffusion runs one step, a sliding network one "
        "window."
    ),
}


def _flat(row: Row) -> dict[str, Any]:
    flat = dict(row)
    if "file" in row:
        flat["file_s"], flat["net_s"] = row["file"]["median_ms"] / 1000, row["net"]["median_ms"] / 1000
    return flat


def _problem(rows: Sequence[Row]) -> str:
    return "; ".join(str(row["problem"]) for row in rows if "problem" in row and "method" not in row)


def _table(rows: Sequence[Row], kind: str, accuracy: Mapping[str, Any] | None) -> tuple[Sequence[str], list[list[str]]]:
    order = ("slice pipeline", "task peer", "ceiling")
    shown = sorted((row for row in rows if "group" in row), key=lambda row: order.index(row["group"]))
    if kind == "memory":
        columns = ("method", "group", "peak MB", "ready s", "first volume s", "process s", "note")
        return columns, [
            [row["method"], row["group"], *(number(row.get(key)) for key in _MEMORY), _note(row)] for row in shown
        ]
    return _LATENCY_COLUMNS, [
        [
            row["method"],
            row["group"],
            number(row.get("net_s")),
            number(row.get("file_s")),
            *(number(accuracy_of(row, accuracy).get(name)) for name in ("auroc", "auprc")),
            *(number(row["file"][key] / 1000) if "file" in row else "-" for key in ("p90_ms", "p99_ms")),
            str(row["net"]["rounds"]) if "net" in row else "-",
            number(row["costs"]["flops"] / 1e12) if row.get("costs") else "-",
            number(row["costs"]["parameters"] / 1e6) if row.get("costs") else "-",
            number(row.get("weights_mb")),
            number(row.get("factor", 1)),
            _note(row),
        ]
        for row in shown
    ]


_LATENCY_COLUMNS = (
    "method", "group", "network s", "file s", "AUROC", "AUPRC", "p90 s", "p99 s", "rounds", "TFLOP", "M parameters",
    "weights MB", "times", "note",
)  # fmt: skip
_MEMORY = ("peak_mb", "ready_s", "volume_s", "process_s")


def _note(row: Row) -> str:
    if "once_ms" in row:
        return f"timed once: {row['once_ms'] / 1000:.1f} s"
    return str(row.get("problem") or row.get("remark") or "")


def _claim_sections(results: Results, ratio: float, memory_ratio: float) -> Iterator[Section]:
    rows = (*rows_of(results, "latency"), *rows_of(results, "memory"))
    names = [row["method"] for row in rows if row.get("group") == "slice pipeline"]
    if names:
        yield Section(
            "The claim",
            text="How many times longer, and larger, a 3D network is than the slice pipeline, with a 95 % interval. "
            f"Asked: {ratio:g} times in time, {memory_ratio:g} times in memory. An interval that includes what was "
            "asked leaves it undecided.",
        )
    for model in dict.fromkeys(names):
        for table in claim_tables(results, model, ratio=ratio, memory_ratio=memory_ratio):
            title = f"{model} against {table.title}s"
            yield Section(title, 3, header=("against", *table.header[1:]), rows=table.rows)


def _stage_sections(results: Results, charts: bool) -> Iterator[Section]:
    rows = [row for row in rows_of(results, "latency") if "stages_ms" in row]
    if rows:
        stages = list(dict.fromkeys(stage for row in rows for stage in row["stages_ms"]))
        table = [
            [row["method"], row["engine"], *(number(row["stages_ms"].get(stage)) for stage in stages)] for row in rows
        ]
        section = Section("Time by stage", text="Medians, ms.", header=("method", "engine", *stages), rows=table)
        if charts:
            from ssn.benchmarks.pages.charts import stages as draw

            section.charts.append(draw(rows))
        yield section


def _step_sections(results: Results, ablation: Sequence[Row]) -> Iterator[Section]:
    table = step_table(results, ablation)
    if table:
        text = (
            'Time from the file to the map, before and after a step. "drops accuracy": AUPRC falls by more than 0.005. '
            '"changes the map": it does not, and both maps correlate with less than 0.999, or the score of the volume '
            "changes by more than 1 %."
        )
        yield _section(table, text)


def _throughput_sections(results: Results, charts: bool) -> Iterator[Section]:
    for row in rows_of(results, "throughput"):
        parts = {name: median_high(values) for name, values in row["samples_s"].items()}
        serial = row["one_after_another"]
        section = Section(
            f"Throughput: {row['method']}",
            text=f"{row['volumes_a_minute']:g} volumes a minute. The slowest part alone, {row['slowest']}, takes "
            f"{percent(row['efficiency'])} of the time of all; that it is 90 % or more: {goal(row)}. "
            f"Computing {row['at_once']} volumes at once alone, as the cohort does, takes "
            f"{percent(row['efficiency_at_once'])}. Limited by {limit(row)}. "
            f"One part after the other would take {serial['value']:.2f} [{serial['low']:.2f}, "
            f"{serial['high']:.2f}] times as long.",
            header=("what", f"s for {row['volumes']} volumes"),
            rows=[[name, number(value)] for name, value in parts.items()],
        )
        if charts:
            section.charts += _scaling_charts(row)
        yield section
        series = _by_slices(row)
        if series:
            counts = sorted({one["slices"] for found in series.values() for one in found})
            times = {name: {one["slices"]: one["median_ms"] / 1000 for one in found} for name, found in series.items()}
            yield Section(
                "Networks alone by slices of the volume",
                3,
                header=("s", *(str(count) for count in counts)),
                rows=[[name, *(number(known.get(count)) for count in counts)] for name, known in times.items()],
            )


def _by_slices(row: Row) -> dict[str, Sequence[Row]]:
    """Collect times by number of slices: of the slice pipeline, and of 3D networks that were timed beside it."""
    return {row["method"]: row["slices"], **row.get("slices_3d", {})} if row.get("slices") else {}


def _scaling_charts(row: Row) -> list[str]:
    from ssn.benchmarks.pages.charts import lines

    found: list[str] = []
    cohorts = row.get("scaling")
    if cohorts:
        xs = [one["volumes"] for one in cohorts]
        found.append(lines({"time": (xs, [one["seconds"] for one in cohorts])}, "volumes in a cohort", "s"))
        found.append(lines({"memory": (xs, [one["peak_mb"] for one in cohorts])}, "volumes in a cohort", "peak MB"))
    series = {
        name: ([one["slices"] for one in times], [one["median_ms"] / 1000 for one in times])
        for name, times in _by_slices(row).items()
    }
    if series:
        found.append(lines(series, "slices of the volume", "s, networks alone"))
    return found


def _roofline_sections(results: Results, charts: bool) -> Iterator[Section]:
    roof: float | None = results.get("latency", {}).get("fp32_matmul_gflops")
    rows = [row for row in rows_of(results, "latency") if row.get("costs") and "net" in row]
    engines = [engine for engine in dict.fromkeys(row["engine"] for row in rows) if "bf16" not in engine]
    for engine in engines if roof is not None else ():
        points = [
            (
                row["method"],
                row["group"],
                row["costs"]["flops"] / row["costs"]["bytes_moved"],
                row["costs"]["flops"] / 1e6 / row["net"]["median_ms"],
            )
            for row in rows
            if row["engine"] == engine
        ]
        section = Section(
            f"Roofline: {engine}",
            text="What each reaches of the rate of one large FP32 matrix product on this machine.",
            header=("method", "FLOP a byte", "GFLOP/s", "share of the roof"),
            rows=[[name, number(x), number(y), f"{100 * y / roof:.0f} %"] for name, _, x, y in points],
        )
        if charts:
            from ssn.benchmarks.pages.charts import roofline

            section.charts.append(roofline(points, roof or 0.0))
        yield section


def _environment_section(results: Results) -> Section:
    found = next(iter(results.values()))["environment"]
    rows = [[key, value if isinstance(value, str) else json.dumps(value)] for key, value in found.items()]
    return Section("Environment", header=("what", "value"), rows=rows)
