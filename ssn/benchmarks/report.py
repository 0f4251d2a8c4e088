"""One self-contained report of what was measured: HTML with charts, or Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ssn.benchmarks.claim import QUANTITIES, check_claim
from ssn.benchmarks.rendering import Section
from ssn.benchmarks.results import Results, rows_of

Row = Mapping[str, Any]


def build_sections(
    results: Results,
    *,
    ratio: float,
    memory_ratio: float,
    accuracy: Mapping[str, Any] | None = None,
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
                section.header, section.rows = _table(own, kind)
            if charts and drawn:
                from ssn.benchmarks.charts import bars

                section.charts.append(bars(drawn, value, unit))
            yield section
    yield from _stage_sections(results, charts)
    yield from _throughput_sections(results, charts)
    yield from _roofline_sections(results, charts)
    if accuracy is not None:
        yield _accuracy_section(accuracy)
    yield _environment_section(results)


_TEXT = {
    "latency": (
        "Medians of interleaved rounds. Network: the networks alone. File: from a gzipped NIfTI to map and mask on "
        "disk; a 3D network's is its own time plus reading, normalising, comparing and writing, timed in the same "
        "rounds. Heavy networks are timed on a part of the volume, or on one of their steps or windows; the column "
        "'times' says how many times that was taken. Weights are random, except the compact model's."
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


def _table(rows: Sequence[Row], kind: str) -> tuple[Sequence[str], list[list[str]]]:
    order = ("slice pipeline", "task peer", "ceiling")
    shown = sorted((row for row in rows if "group" in row), key=lambda row: order.index(row["group"]))
    if kind == "memory":
        columns = ("method", "group", "peak MB", "ready s", "first volume s", "process s", "note")
        return columns, [
            [row["method"], row["group"], *(_number(row.get(key)) for key in _MEMORY), _note(row)] for row in shown
        ]
    return _LATENCY_COLUMNS, [
        [
            row["method"],
            row["group"],
            _number(row.get("net_s")),
            _number(row.get("file_s")),
            *(_number(row["file"][key] / 1000) if "file" in row else "-" for key in ("p90_ms", "p99_ms")),
            str(row["net"]["rounds"]) if "net" in row else "-",
            _number(row["costs"]["flops"] / 1e12) if row.get("costs") else "-",
            _number(row["costs"]["parameters"] / 1e6) if row.get("costs") else "-",
            _number(row.get("weights_mb")),
            _number(row.get("factor", 1)),
            _note(row),
        ]
        for row in shown
    ]


_LATENCY_COLUMNS = (
    "method", "group", "network s", "file s", "p90 s", "p99 s", "rounds", "TFLOP", "M parameters", "weights MB",
    "times", "note",
)  # fmt: skip
_MEMORY = ("peak_mb", "ready_s", "volume_s", "process_s")


def _note(row: Row) -> str:
    if "once_ms" in row:
        return f"timed once: {row['once_ms'] / 1000:.1f} s"
    return str(row.get("problem") or row.get("remark") or "")


def _claim_sections(results: Results, ratio: float, memory_ratio: float) -> Iterator[Section]:
    names = [row["method"] for kind in ("latency", "memory") for row in results.get(kind, {}).get("rows", ())
             if row.get("group") == "slice pipeline"]  # fmt: skip
    if names:
        yield Section(
            "The claim",
            text="How many times longer, and larger, a 3D network is than the slice pipeline, with a 95 % interval. "
            f"Asked: {ratio:g} times in time, {memory_ratio:g} times in memory. An interval that includes what was "
            "asked leaves it undecided.",
        )
    for model in dict.fromkeys(names):
        found = check_claim(results, model, ratio=ratio, memory_ratio=memory_ratio)
        for group in ("task peer", "ceiling"):
            lines: dict[tuple[str, str], dict[str, str]] = {}
            for finding in found:
                if finding.group == group:
                    lines.setdefault((finding.engine, finding.method), {})[finding.quantity] = finding.line()
            rows = [
                [method, engine, *(line.get(quantity, "-") for quantity in QUANTITIES)]
                for (engine, method), line in lines.items()
            ]
            if rows:
                header = ("against", "engine", "network", "file to file", "memory")
                yield Section(f"{model} against {group}s", 3, header=header, rows=rows)


def _stage_sections(results: Results, charts: bool) -> Iterator[Section]:
    rows = [row for row in rows_of(results, "latency") if "stages_ms" in row]
    if rows:
        stages = list(dict.fromkeys(stage for row in rows for stage in row["stages_ms"]))
        table = [
            [row["method"], row["engine"], *(_number(row["stages_ms"].get(stage)) for stage in stages)] for row in rows
        ]
        section = Section("Time by stage", text="Medians, ms.", header=("method", "engine", *stages), rows=table)
        if charts:
            from ssn.benchmarks.charts import stages as draw

            section.charts.append(draw(rows))
        yield section


def _throughput_sections(results: Results, charts: bool) -> Iterator[Section]:
    found = results.get("throughput")
    if not found:
        return
    for row in found.get("rows", ()):
        parts = {name: sorted(values)[len(values) // 2] for name, values in row["samples_s"].items()}
        efficiency, serial = row["efficiency"], row["one_after_another"]
        section = Section(
            f"Throughput: {row['method']}",
            text=f"{row['volumes_a_minute']:g} volumes a minute. The slowest part alone, {row['slowest']}, takes "
            f"{100 * efficiency['value']:.0f} % [{100 * efficiency['low']:.0f}, {100 * efficiency['high']:.0f}] of the "
            f"time of all; one part after the other would take {serial['value']:.2f} [{serial['low']:.2f}, "
            f"{serial['high']:.2f}] times as long.",
            header=("what", f"s for {row['volumes']} volumes"),
            rows=[[name, _number(value)] for name, value in parts.items()],
        )
        for key, x_label in (("scaling", "volumes"), ("slices", "slices")):
            if charts and row.get(key):
                section.charts += _scaling(row[key], x_label)
        yield section


def _scaling(rows: Sequence[Row], x_label: str) -> list[str]:
    from ssn.benchmarks.charts import lines

    xs = [row[x_label] for row in rows]
    if x_label == "slices":
        return [lines({"networks": (xs, [row["median_ms"] / 1000 for row in rows])}, "slices", "s, networks alone")]
    return [
        lines({"time": (xs, [row["seconds"] for row in rows])}, "volumes in a cohort", "s"),
        lines({"memory": (xs, [row["peak_mb"] for row in rows])}, "volumes in a cohort", "peak MB"),
    ]


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
            rows=[[name, _number(x), _number(y), f"{100 * y / roof:.0f} %"] for name, _, x, y in points],
        )
        if charts:
            from ssn.benchmarks.charts import roofline

            section.charts.append(roofline(points, roof or 0.0))
        yield section


def _accuracy_section(accuracy: Mapping[str, Any]) -> Section:
    names = ("auroc", "auprc", "dice", "pro", "slice_auroc", "slice_auprc")
    rows = [
        [method, label, *(_number(values.get(name)) for name in names)]
        for method, found in accuracy.items()
        for label, values in found.get("summary", {}).items()
        if isinstance(values, Mapping) and "auroc" in values
    ]
    text = "As ssn-bench accuracy measured it. 3D networks here have random weights, so they have no accuracy."
    return Section("Accuracy", text=text, header=("method", "lesions", *names), rows=rows)


def _environment_section(results: Results) -> Section:
    found = next(iter(results.values()))["environment"]
    rows = [[key, value if isinstance(value, str) else json.dumps(value)] for key, value in found.items()]
    return Section("Environment", header=("what", "value"), rows=rows)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
