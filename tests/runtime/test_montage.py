"""The picture of a result: every slice lies as it says, and colour is where the map is above the threshold."""

from dataclasses import replace

import numpy as np
import pytest
from brains import LESION_AT, brain_array, save
from PIL import ImageDraw

from ssn.core.bundle import Bundle, ModelSpec
from ssn.core.geometry import GridConfig
from ssn.core.scoring import Calibration
from ssn.core.volume import read_volume
from ssn.runtime import montage
from ssn.runtime.backend import StageTimes
from ssn.runtime.montage import draw_montage
from ssn.runtime.result import Result

THRESHOLD = 4.0
LESION = tuple(LESION_AT)  # right, front, up


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A map that is high in the lesion, warm below the threshold in all of the left half, and 0 elsewhere."""
    data, affine = brain_array((3.0, 3.0, 4.0))
    volume = read_volume(save(tmp_path_factory.mktemp("scan") / "scan.nii", data, affine))
    x = affine[0, 0] * np.arange(data.shape[0]) + affine[0, 3]
    brain, lesion = data > 0, data > 800
    score_map = np.where(lesion, 9.0, np.where(x[:, None, None] < 0, 2.0, 0.0) * brain).astype(np.float32)
    slices = score_map.max((0, 1))
    mask = lesion.astype(np.uint8)
    return Result(volume, brain, score_map, mask, THRESHOLD, 8.0, 0.01, True, slices, StageTimes())


@pytest.fixture
def bundle(tmp_path):
    table = np.zeros((GridConfig().windows, 12, 12), np.float32)
    calibration = Calibration(table, table + 1, 1.0, 3.0, THRESHOLD, 0.01, np.arange(1, 8, dtype=np.float32))
    return Bundle(tmp_path, {}, "0" * 64, ModelSpec("test", "t1", GridConfig(), "robust", 12, 1, 0.5), calibration)


def voxel(result, place):
    affine = np.linalg.inv(result.volume.affine)
    return tuple(round(v) for v in (affine @ [*place, 1])[:3])


def colour(tile):
    """Where a tile is not grey, and where it is the outline."""
    pixels = np.asarray(tile, int)
    return np.ptp(pixels, axis=-1) > 8, (pixels == montage._OUTLINE).all(-1)


@pytest.mark.parametrize(("axis", "right", "up"), [(axis, right, up) for _, axis, right, up, _ in montage._ROWS])
def test_the_right_the_front_and_the_top_of_a_head_are_where_the_letters_say(result, axis, right, up):
    tile = montage._Painter(result).tile(axis, voxel(result, LESION)[axis], right, up)
    coloured, outline = colour(tile)
    sides = result.volume.zooms
    box = montage.brain_box(result.brain, montage._BRAIN_MARGIN)
    width, height = ((box[side].stop - box[side].start) * sides[side] for side in (right, up))
    assert tile.width / tile.height == pytest.approx(width / height, rel=0.02), "to scale"
    rows, columns = np.nonzero(outline)
    assert columns.mean() / tile.width == pytest.approx(0.5 + LESION[right] / width, abs=0.04)
    assert rows.mean() / tile.height == pytest.approx(0.5 - LESION[up] / height, abs=0.04)
    assert coloured[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].sum() > 0.8 * coloured.sum()


def test_what_is_far_below_the_threshold_keeps_its_grey_and_all_above_it_is_coloured(result):
    tile = montage._Painter(result).tile(2, voxel(result, LESION)[2], 0, 1)
    coloured, outline = colour(tile)
    assert outline.any()
    rows, columns = np.nonzero(outline)
    centre = int(rows.mean()), int(columns.mean())
    assert coloured[centre], "in the lesion"
    assert not outline[centre], "a line around it"
    assert not coloured[:, : tile.width // 2].any(), "well below the threshold"
    assert tuple(np.asarray(tile)[0, 0]) == montage._BACKGROUND
    assert np.asarray(tile)[80:140, 40:80].std() > 3, "the scan is seen"


def test_the_slice_of_the_peak_is_shown_among_slices_that_spread_over_the_brain():
    for peak in (12, 30, 49):
        shown = montage._chosen(slice(10, 50), peak)
        assert peak in shown
        assert shown == sorted(shown)
        assert len(shown) == len(set(shown)) == montage._COLUMNS
        assert max(np.diff(shown)) < 20
        assert set(shown) <= set(range(10, 50))


def test_the_sheet_says_the_verdict_and_shows_the_lesion_in_each_row(result, bundle, monkeypatch):
    texts, heights, draw = [], {}, ImageDraw.ImageDraw.text

    def noted(self, at, text, *more, **how):
        texts.append(text)
        heights[text] = round(at[1])
        draw(self, at, text, *more, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    sheet = draw_montage(result, bundle)
    told = " ".join(texts)
    assert "volume score 8.00, above the range of 7 healthy volumes (up to 7.00)" in told
    assert f"p = 0.010; {result.above_ml:.1f} ml above threshold" in told
    assert "Research use only" in told
    assert [text for text in texts if len(text) == 1] == ["L", "R", "L", "R", "P", "A"]
    for axis, name in ((2, "axial"), (1, "coronal"), (0, "sagittal")):
        assert f"{name} {result.peak[axis]}" in texts
    outline = (np.asarray(sheet, int) == montage._OUTLINE).all(-1)
    rows = outline[montage._TOP :, montage._LEFT : -montage._RIGHT].any(1)
    assert np.count_nonzero(np.diff(rows.astype(int)) == 1) == 3, "once in each row of tiles"
    bar = np.asarray(sheet, int)[:, -montage._RIGHT + 22]
    assert bar[heights["9.0"] + 1].sum() > bar[heights["4.0"] + 5].sum() > bar[heights["4.0"] + 15].sum()
    assert tuple(bar[heights["4.0"]]) == montage._OUTLINE, "the threshold's line stands at its number"
    draw_montage(replace(result, abnormal=False), bundle)
    assert "within the range of" in " ".join(texts)
