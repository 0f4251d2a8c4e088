"""Charts of a report, as SVG text drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

OURS, PEER, CEILING = "#0b7285", "#e8590c", "#868e96"
COLOURS = {"slice pipeline": OURS, "task peer": PEER, "ceiling": CEILING}
_STAGES = ("read", "prepare", "encoder", "flow", "network", "map", "write")
_STAGE_COLOURS = ("#adb5bd", "#74c0fc", "#0b7285", "#15aabf", "#1098ad", "#fab005", "#f76707")
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ssn",  # the same data give the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = stream.getvalue()
    return text[text.index("<svg") :]


def bars(rows: Sequence[Mapping[str, Any]], value: str, unit: str) -> str:
    """Draw one horizontal bar a method, slice pipelines first, then each group by size, on a logarithmic axis.

    Parameters
    ----------
    rows : of one engine, each with "method", "group", and under `value` a number
    """
    with plt.rc_context(_STYLE):
        return _svg(_bars(rows, value, unit))


def bars_png(rows: Sequence[Mapping[str, Any]], value: str, unit: str) -> bytes:
    """Draw what `bars` draws, as PNG."""
    stream = io.BytesIO()
    with plt.rc_context(_STYLE):
        figure = _bars(rows, value, unit)
        figure.savefig(stream, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return stream.getvalue()


def _bars(rows: Sequence[Mapping[str, Any]], value: str, unit: str) -> Figure:
    order = list(COLOURS)
    shown = sorted(rows, key=lambda row: (order.index(row["group"]), row[value]))
    figure, axis = plt.subplots(figsize=(7.2, 0.5 + 0.27 * len(shown)))
    places = range(len(shown))
    axis.barh(places, [row[value] for row in shown], color=[COLOURS[row["group"]] for row in shown], height=0.7)
    axis.set_yticks(places, [row["method"] for row in shown])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    for place, row in zip(places, shown, strict=True):
        axis.annotate(
            _short(row[value]), (row[value], place), (3, 0), textcoords="offset points", va="center", fontsize=8
        )
    largest = max(row[value] for row in shown)
    axis.set_xlim(min(row[value] for row in shown) / 3, largest * 3)
    axis.set_xlabel(unit)
    handles = [Patch(color=colour) for colour in COLOURS.values()]
    axis.legend(handles, COLOURS, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure


def stages(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw each slice pipeline's time by stage, stacked."""
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(7.2, 0.8 + 0.34 * len(rows)))
        left = [0.0] * len(rows)
        for stage, colour in zip(_STAGES, _STAGE_COLOURS, strict=True):
            widths = [row["stages_ms"].get(stage, 0.0) / 1000 for row in rows]
            if any(widths):
                axis.barh(range(len(rows)), widths, left=left, color=colour, height=0.65, label=stage)
                left = [a + b for a, b in zip(left, widths, strict=True)]
        axis.set_yticks(range(len(rows)), [f"{row['method']}, {row['engine']}" for row in rows])
        axis.invert_yaxis()
        axis.set_xlabel("s a volume, file to file")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(_STAGES), frameon=False)
        return _svg(figure)


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str) -> str:
    """Draw a line a series (xs, ys), from zero."""
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(4.2, 2.6))
        for (name, (xs, ys)), colour in zip(series.items(), (OURS, PEER, CEILING), strict=False):
            axis.plot(xs, ys, marker="o", markersize=4, color=colour, label=name)
        axis.set_xlim(left=0)
        axis.set_ylim(0, 1.15 * max(max(ys) for _, ys in series.values()))
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        if len(series) > 1:
            axis.legend(frameon=False)
        return _svg(figure)


def roofline(points: Sequence[tuple[str, str, float, float]], roof: float) -> str:
    """Draw what each method reaches of the matrix product's rate, against its arithmetic intensity.

    Parameters
    ----------
    points : (method, group, FLOP a byte moved, GFLOP/s)
    roof : GFLOP/s
    """
    with plt.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(7.2, 3.4))
        axis.axhline(roof, color="#343a40", linewidth=1)
        axis.annotate(
            f"FP32 matrix product, {roof:.0f} GFLOP/s",
            (1, roof),
            (0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
        )
        for index, (_, group, intensity, rate) in enumerate(points):
            axis.plot(intensity, rate, "o", color=COLOURS[group], markersize=8)
            axis.annotate(
                str(index + 1), (intensity, rate), ha="center", va="center", color="white", fontsize=6, weight="bold"
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter("{x:g}")
            side.set_minor_formatter("{x:g}")
        axis.set_xlabel("FLOP a byte that its operators move one by one")
        axis.set_ylabel("GFLOP/s")
        names = [f"{index + 1} {method}" for index, (method, *_) in enumerate(points)]
        axis.annotate(
            "\n".join(names), (1.02, 1), xycoords="axes fraction", va="top", fontsize=7.5, annotation_clip=False
        )
        return _svg(figure)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
