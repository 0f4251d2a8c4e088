"""Pictures of a comparison: pooled ROC and PR curves, and the same slices under every method."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ssn.benchmarks.accuracy.measured import MethodAccuracy, Thresholds
from ssn.core.atomic import atomic_path
from ssn.core.pose import find_brain
from ssn.core.volume import read_volume
from ssn.train.cases import Case
from ssn.train.masks import read_mask

SHOWN = 4
_BOX_MARGIN = 4  # voxels around the brain
_OUTLINE = "#46dcff"
_DASHES = ("-", "--", ":")


@dataclass(frozen=True)
class Shown:
    """A slice of the montage: axial index, image, brain and mask (X, Y), edges of its voxels in mm (x, y)."""

    case: Case
    index: int
    image: NDArray[np.float32]
    brain: NDArray[np.bool_]
    mask: NDArray[np.bool_]
    zooms: tuple[float, float]


def choose_slices(test: Sequence[Case]) -> list[Shown]:
    """Choose up to `SHOWN` lesioned volumes, and of each the slice with most lesion.

    Kinds of lesion take turns; within a kind the volume of median size comes first, then its neighbours, so that
    nobody has picked what looks well.
    """
    sizes = {case.name: int(read_mask(case.mask).sum()) for case in test if case.mask is not None}
    lesioned = sorted((case for case in test if case.mask is not None), key=lambda case: case.lesion)
    queues = []
    for _, group in groupby(lesioned, key=lambda case: case.lesion):
        ordered = sorted(group, key=lambda case: (sizes[case.name], case.name))
        middle = (len(ordered) - 1) / 2
        queues.append(sorted(ordered, key=lambda case: abs(ordered.index(case) - middle)))
    turns = [queue[turn] for turn in range(SHOWN) for queue in queues if turn < len(queue)]
    return [_slice_of(case) for case in turns[:SHOWN]]


def _slice_of(case: Case) -> Shown:
    assert case.mask is not None
    volume = read_volume(case.image)
    mask = read_mask(case.mask, volume.data.shape)
    index = int(mask.sum((0, 1)).argmax())
    image, brain = volume.data[:, :, index].copy(), find_brain(volume)[:, :, index].copy()
    return Shown(case, index, image, brain, mask[:, :, index], volume.zooms[:2])


def _upright(plane: NDArray[Any], box: tuple[slice, slice]) -> NDArray[Any]:
    return plane[box].T[::-1]


def _box(shown: Shown) -> tuple[slice, slice]:
    seen = shown.brain | shown.mask
    parts = []
    for axis in (0, 1):
        inside = np.flatnonzero(seen.any(1 - axis))
        parts.append(slice(max(int(inside[0]) - _BOX_MARGIN, 0), int(inside[-1]) + 1 + _BOX_MARGIN))
    return parts[0], parts[1]


def _relative(plane: NDArray[np.float32], thresholds: Thresholds) -> NDArray[np.float32]:
    """Map values with the healthy median at 0 and the healthy-only threshold at 1."""
    span = max(thresholds.healthy - thresholds.healthy_median, 1e-12)
    return (plane - np.float32(thresholds.healthy_median)) / np.float32(span)


def draw_montage(shown: Sequence[Shown], methods: Mapping[str, MethodAccuracy]) -> Figure:
    """Draw a row a volume and a column a method, all in one colour scale."""
    boxes = [_box(item) for item in shown]
    columns = 1 + len(methods)
    heights = [(box[1].stop - box[1].start) * item.zooms[1] for box, item in zip(boxes, shown, strict=True)]
    widths = [(box[0].stop - box[0].start) * item.zooms[0] for box, item in zip(boxes, shown, strict=True)]
    tile = 1.55
    figure = Figure(
        figsize=(columns * tile + 1.35, sum(heights) / max(widths) * tile + 0.75), facecolor="#0d0e11", dpi=110
    )
    grid = figure.subplots(len(shown), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    figure.subplots_adjust(left=0.25 / figure.get_figwidth(), right=1 - 1.1 / figure.get_figwidth(), bottom=0.01,
                           top=1 - 0.5 / figure.get_figheight(), wspace=0.03, hspace=0.03)  # fmt: skip
    colours = ScalarMappable(Normalize(0, 2), "inferno")
    for row, (item, box) in enumerate(zip(shown, boxes, strict=True)):
        aspect = item.zooms[1] / item.zooms[0]
        mask = _upright(item.mask, box)
        image = _upright(item.image, box)
        brain = _upright(item.brain, box)
        for column, name in enumerate((None, *methods)):
            axis = grid[row, column]
            axis.set_axis_off()
            if name is None:
                brightest = np.percentile(item.image[item.brain | item.mask], 99.5)
                axis.imshow(image, cmap="gray", vmax=brightest, aspect=aspect)
                axis.text(-0.04, 0.5, wrap(item.case.lesion), color="white", fontsize=9, transform=axis.transAxes,
                          ha="right", va="center", rotation=90)  # fmt: skip
            else:
                plane = _relative(_upright(methods[name].slices[item.case.name], box), methods[name].thresholds)
                plane = np.where(brain, plane, np.nan)
                axis.imshow(plane, cmap=colours.cmap, norm=colours.norm, aspect=aspect, interpolation="nearest")
            axis.contour(mask, [0.5], colors=_OUTLINE, linewidths=0.8)
            if row == 0:
                axis.set_title(wrap("slice and lesion" if name is None else name), color="white", fontsize=9)
    bar = figure.colorbar(
        colours, cax=figure.add_axes((1 - 0.95 / figure.get_figwidth(), 0.2, 0.15 / figure.get_figwidth(), 0.6))
    )
    bar.set_ticks([0, 1, 2], labels=["healthy\nmedian", "healthy\nthreshold", "twice\nas far"])
    bar.ax.tick_params(colors="white", labelsize=8)
    return figure


def wrap(name: str) -> str:
    """Break a long name into lines of about a column's width; a dollar sign in it starts no formula."""
    return textwrap.fill(name, 20).replace("$", r"\$")


def draw_curves(methods: Mapping[str, MethodAccuracy]) -> Figure:
    """Draw pooled ROC and precision-recall curves, a line a method with its area in the legend."""
    figure = Figure(figsize=(14, 4.6), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    share = 0.0
    handles: dict[str, list[Line2D]] = {"roc": [], "pr": []}
    for index, (name, found) in enumerate(methods.items()):
        style = {
            "color": f"C{index % 10}",
            "linestyle": _DASHES[index // 10 % 3],
            "linewidth": 2.4 if not index else 1.4,
        }
        pooled = found.pooled
        (line,) = left.plot(*pooled.roc(), label=wrap(f"{pooled.auroc():.3f}  {name}"), **style)
        handles["roc"].append(line)
        (line,) = right.plot(*pooled.precision_recall(), label=wrap(f"{pooled.auprc():.3f}  {name}"), **style)
        handles["pr"].append(line)
        share = float(pooled.lesion[0] / (pooled.lesion[0] + pooled.other[0]))
    left.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    right.axhline(share, color="0.7", linewidth=0.8)
    left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC and its area", aspect="equal")
    right.set(xlabel="recall", ylabel="precision", title="precision-recall and average precision", aspect="equal")
    for axis, lines in ((left, handles["roc"]), (right, handles["pr"])):
        axis.set(xlim=(0, 1), ylim=(0, 1.01))
        axis.spines[["top", "right"]].set_visible(False)
        lines.sort(key=lambda line: -float(str(line.get_label()).split(maxsplit=1)[0]))
        axis.legend(handles=lines, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8.5)
    figure.suptitle("Brain voxels of all lesioned test volumes, pooled; grey: chance", fontsize=9)
    return figure


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, whole file or none; an existing one is replaced.

    Raises
    ------
    OutputError
        If it can't be written.
    """
    with atomic_path(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
