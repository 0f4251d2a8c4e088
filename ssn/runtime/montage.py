"""The picture of a result: axial, coronal and sagittal slices with the map laid over them.

Drawn with Pillow: a plotting library would take longer to import than the volume takes to compute.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ssn.core.atomic import Held, atomic_path
from ssn.core.brain_box import brain_box
from ssn.core.bundle import INTENDED_USE, Bundle
from ssn.core.tails import outer_percentiles
from ssn.runtime.own import PICTURE_MARK
from ssn.runtime.result import Result

_COLUMNS = 7
_TILE = 216  # pixels, the longest side of the brain's box
_GAP, _LEFT, _TOP, _BOTTOM, _RIGHT = 8, 88, 74, 40, 110
_BACKGROUND, _TEXT, _FAINT = (13, 14, 17), (232, 232, 236), (140, 142, 150)
_OUTLINE = (70, 220, 255)
# Black body: dark red over orange to pale yellow, each level brighter than the one below.
_HEAT = np.array([(96, 0, 16), (168, 12, 12), (222, 62, 8), (250, 132, 20), (255, 200, 60), (255, 250, 190)])
_BRAIN_MARGIN = 3  # voxels around the brain's box
# Row: (axis that is sliced, axis shown to the right, axis shown upwards, labels left and right of a tile)
_ROWS = (("axial", 2, 0, 1, "LR"), ("coronal", 1, 0, 2, "LR"), ("sagittal", 0, 1, 2, "PA"))


def _heat(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours (..., 3) in 0..255 of values in 0..1."""
    places = values.clip(0, 1) * (len(_HEAT) - 1)
    levels = np.arange(len(_HEAT))
    return np.stack([np.interp(places, levels, _HEAT[:, c]) for c in range(3)], -1).astype(np.float32)


def _chosen(side: slice, peak: int) -> list[int]:
    """Slices spread evenly over a side of the brain's box, the nearest one replaced by that of the map's peak."""
    low, high = side.start, side.stop - 1
    chosen = [int(low + (high - low) * share) for share in np.linspace(0.12, 0.88, _COLUMNS)]
    chosen[int(np.argmin([abs(index - peak) for index in chosen]))] = peak
    return chosen


def _edges(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask that touch a pixel outside it."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


class _Painter:
    """Turns slices of one result into tiles of one size and brightness."""

    def __init__(self, result: Result) -> None:
        self.result = result
        low, high = outer_percentiles(result.volume.data[result.brain], 1, 99.5)
        self.window = low, max(high - low, float(np.finfo(np.float32).tiny))
        self.top = max(2.0 * result.threshold, float(result.score_map.max()))
        self.box = brain_box(result.brain, _BRAIN_MARGIN)
        extents = [(part.stop - part.start) * zoom for part, zoom in zip(self.box, result.volume.zooms, strict=True)]
        self.scale = _TILE / max(extents)
        self.sizes = [max(1, round(extent * self.scale)) for extent in extents]

    def tile(self, axis: int, index: int, right: int, up: int) -> Image.Image:
        """One slice: grey, map over it, outline of the mask."""
        result = self.result
        where: list[int | slice] = [*self.box]
        where[axis] = index
        size = (self.sizes[right], self.sizes[up])

        def view(array: NDArray[np.generic], how: Image.Resampling) -> NDArray[np.float32]:
            plane = np.asarray(array[tuple(where)], np.float32).T
            image = Image.fromarray(np.ascontiguousarray(plane[::-1])).resize(size, how)
            return np.asarray(image, np.float32)

        low, span = self.window
        grey = ((view(result.volume.data, Image.Resampling.BICUBIC) - low) / span).clip(0, 1)
        brain = view(result.brain, Image.Resampling.BILINEAR)
        score = view(result.score_map, Image.Resampling.BICUBIC)
        picture = (grey * brain.clip(0, 1))[..., None] * 255 + np.zeros(3, np.float32)
        begin = 0.75 * result.threshold
        alpha = 0.62 * ((score - begin) / max(result.threshold - begin, 1e-6)).clip(0, 1)[..., None]
        colour = _heat((score - begin) / max(self.top - begin, 1e-6))
        picture = picture * (1 - alpha) + colour * alpha
        picture[brain < 0.05] = _BACKGROUND
        mask = view(result.mask, Image.Resampling.BILINEAR) > 0.5
        picture[_edges(mask)] = _OUTLINE
        return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def _colour_bar(
    draw: ImageDraw.ImageDraw, painter: _Painter, font: ImageFont.FreeTypeFont, x: int, y: int, height: int
) -> None:
    threshold, top = painter.result.threshold, painter.top
    begin = 0.75 * threshold
    for row in range(height):
        z = top - (top - begin) * row / (height - 1)
        colour = _heat(np.array([(z - begin) / max(top - begin, 1e-6)], np.float32))[0]
        draw.line([(x, y + row), (x + 18, y + row)], fill=tuple(int(c) for c in colour))
    for z, label in ((top, f"{top:.1f}"), (threshold, f"{threshold:.1f}")):
        at = y + (top - z) / max(top - begin, 1e-6) * (height - 1)
        draw.line([(x + 18, at), (x + 24, at)], fill=_TEXT)
        draw.text((x + 28, at), label, _TEXT, font, anchor="lm")
    draw.text((x, y - 12), "z-score", _TEXT, font, anchor="lb")
    at = y + (top - threshold) / max(top - begin, 1e-6) * (height - 1)
    draw.line([(x, at), (x + 18, at)], fill=_OUTLINE, width=2)
    draw.text((x, y + height + 8), "outline:\nthreshold", _OUTLINE, font)


def draw_montage(result: Result, bundle: Bundle) -> Image.Image:
    """Draw the montage: a row of slices along each axis, to scale, with labels and a colour bar."""
    painter = _Painter(result)
    large, font = (ImageFont.load_default(size) for size in (19, 14))
    heights = [painter.sizes[up] for _, _, _, up, _ in _ROWS]
    widths = [painter.sizes[right] for _, _, right, _, _ in _ROWS]
    column = max(widths) + _GAP
    width = _LEFT + _COLUMNS * column + _RIGHT
    height = _TOP + sum(heights) + len(_ROWS) * (_GAP + 18) + _BOTTOM
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)

    verdict = "above" if result.abnormal else "within"
    draw.text((_LEFT, 14), result.volume.path.name[:90], _TEXT, large)
    summary = (
        f"volume score {result.score:.2f}, {verdict} the range of {bundle.calibration.healthy_scores.size} "
        f"healthy volumes (up to {bundle.calibration.volume_threshold:.2f}); p = {result.p_value:.3f}; "
        f"{result.above_ml:.1f} ml above threshold"
    )
    draw.text((_LEFT, 42), summary, _OUTLINE if result.abnormal else _FAINT, font)

    box, peak = brain_box(result.brain), result.peak
    y = _TOP
    for (name, axis, right, up, ends), tall, wide in zip(_ROWS, heights, widths, strict=True):
        draw.text((14, y + tall // 2), name, _FAINT, font, anchor="lm")
        for place, index in enumerate(_chosen(box[axis], peak[axis])):
            x = _LEFT + place * column + (column - _GAP - wide) // 2
            sheet.paste(painter.tile(axis, index, right, up), (x, y))
            draw.text((x + wide // 2, y + tall + 2), f"{name} {index}", _FAINT, font, anchor="ma")
            if place == 0:
                draw.text((x - 3, y + tall // 2), ends[0], _TEXT, font, anchor="rm")
            draw.text((x + wide - 1, y + 2), ends[1], _TEXT, font, anchor="ra") if place == _COLUMNS - 1 else None
        y += tall + _GAP + 18
    _colour_bar(draw, painter, font, width - _RIGHT + 18, _TOP + 40, sum(heights) // 2)
    draw.text((_LEFT, height - 26), f"{INTENDED_USE}  Model: {bundle.spec.name}", _FAINT, font)
    return sheet


def write_montage(
    path: Path, result: Result, bundle: Bundle, *, overwrite: bool = False, held: Held | None = None
) -> None:
    """Write the montage as PNG, whole file or none.

    Raises
    ------
    OutputError
        If it exists and is not to be overwritten, or can't be written.
    """
    about = PngInfo()
    about.add_text(*PICTURE_MARK)
    with atomic_path(path, overwrite=overwrite, held=held) as temporary:
        draw_montage(result, bundle).save(temporary, "PNG", compress_level=1, pnginfo=about)
