"""What moves a brain in the grid, or makes brain of what is none, is put right or said."""

import nibabel as nib
import numpy as np
import pytest
from brains import brain_array

from ssn.core.brain_doubts import brain_doubts
from ssn.core.errors import VolumeError
from ssn.core.geometry import PAPER_GRID, GridConfig
from ssn.core.look import Look
from ssn.core.slices import cut_slices
from ssn.core.volume import read_volume

ZOOMS = (2.0, 2.0, 2.0)
DATA, AFFINE = brain_array(ZOOMS)
INSIDE = np.argwhere(DATA > 0)
LOW, HIGH = INSIDE.min(0), INSIDE.max(0) + 1


def look(folder, data, affine=AFFINE, grid=None):
    """The stack of a volume, and what is doubtful about it."""
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), folder / "scan.nii")
    volume = read_volume(folder / "scan.nii")
    stack = cut_slices(volume, grid or GridConfig(), 12)
    return stack, brain_doubts(volume, Look.as_it_lies(stack))


def scales(stack):
    return [axis.scale for axis in stack.placement.axes]


def box(low, high, beyond=0):
    return tuple(slice(max(a - beyond, 0), b + beyond) for a, b in zip(low, high, strict=True))


def test_an_ordinary_brain_gives_no_doubt(tmp_path):
    assert look(tmp_path, DATA)[1] == []


def test_a_volume_cropped_to_its_brain_is_placed_as_it_was(tmp_path):
    whole, _ = look(tmp_path, DATA)
    cropped, doubts = look(tmp_path, DATA[box(LOW, HIGH)])
    assert doubts == []
    for cut, axis, low in zip(cropped.placement.axes, whole.placement.axes, LOW, strict=True):
        assert cut.scale == pytest.approx(axis.scale)
        assert cut.offset == pytest.approx(axis.offset + low * axis.scale)


def test_an_end_that_the_field_of_view_cuts_off_says_nothing_of_the_size(tmp_path):
    whole, _ = look(tmp_path, DATA)
    cut, (doubt,) = look(tmp_path, DATA[LOW[0] + 8 :])
    assert doubt.startswith("the field of view cuts off its left;")
    assert scales(cut)[0] == pytest.approx(scales(whole)[1])


@pytest.mark.parametrize(
    ("part", "sides"), [(np.s_[:, : HIGH[1] - 8], "front"), (np.s_[LOW[0] + 8 : HIGH[0] - 8], "left and right")]
)
def test_the_sides_that_the_field_of_view_cuts_off_are_named(tmp_path, part, sides):
    (doubt,) = look(tmp_path, DATA[part])[1]
    assert doubt == f"the field of view cuts off its {sides}; do not trust the map beside that"


def test_what_is_not_finite_is_said_by_its_millilitres(tmp_path):
    part = DATA.copy()
    part[LOW[0] : LOW[0] + 6, 40:60, 40:60] = np.nan  # at its side: no hole, and no slice without brain
    doubts = look(tmp_path, part)[1]
    assert any(doubt.startswith(f"{np.isnan(part).sum() * 0.008:.0f} ml of it are NaN or infinite") for doubt in doubts)
    part[np.isnan(part)] = 0
    assert not any("NaN" in doubt for doubt in look(tmp_path, part)[1])


def test_a_head_whose_top_is_cut_off_is_doubted(tmp_path):
    assert look(tmp_path, DATA[:, :, : HIGH[2] - 1])[1] == []
    (doubt,) = look(tmp_path, DATA[:, :, : HIGH[2] - 5])[1]
    assert doubt.startswith("the top of the head is cut off")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_fragment_beside_the_brain_does_not_move_it_and_is_said(tmp_path, axis):
    wide = np.pad(DATA, 12)
    affine = AFFINE @ np.array([[1, 0, 0, -12], [0, 1, 0, -12], [0, 0, 1, -12], [0, 0, 0, 1]])
    whole, _ = look(tmp_path, wide, affine)
    places = [slice(s // 2, s // 2 + 5) for s in wide.shape]
    places[axis] = slice(wide.shape[axis] - 5, wide.shape[axis] - 2)
    wide[tuple(places)] = 300
    beside, doubts = look(tmp_path, wide, affine)
    assert beside.placement == whole.placement
    (doubt,) = (doubt for doubt in doubts if "apart" in doubt)
    assert doubt.startswith("0.6 ml lie apart from the brain, and count as brain; set them to the background's value")


def test_brain_that_a_lost_slice_parts_from_the_rest_is_not_only_to_be_taken_away(tmp_path):
    lost = DATA.copy()
    lost[:, :, HIGH[2] - 3] = 0  # what is above it could be the round end of something else
    (doubt,) = look(tmp_path, lost)[1]
    assert doubt.endswith("or, if they are brain beside a lost slice, convert it again from its source")


@pytest.mark.parametrize("planes", [[HIGH[2] - 4], range(LOW[2] + 9, HIGH[2] - 9, 2)])
def test_slices_lost_near_an_end_or_every_second_one_move_no_brain(tmp_path, planes):
    whole, _ = look(tmp_path, DATA)
    lost = DATA.copy()
    lost[:, :, planes] = 0
    stack, (doubt,) = look(tmp_path, lost)
    assert stack.placement == whole.placement
    assert doubt.startswith(f"{len(planes)} of its axial slices, between others with brain, hold none")


@pytest.mark.parametrize("value", [0, np.nan])
@pytest.mark.parametrize(("axis", "name"), enumerate(("sagittal", "coronal", "axial")))
def test_a_missing_slice_is_no_end_of_the_brain_and_is_said(tmp_path, axis, name, value):
    whole, _ = look(tmp_path, DATA)
    lost = DATA.copy()
    np.moveaxis(lost, axis, 0)[DATA.shape[axis] // 2] = value
    stack, (doubt, *_) = look(tmp_path, lost)
    assert stack.placement == whole.placement
    assert doubt.startswith(f"1 of its {name} slices, between others with brain, hold none")


@pytest.mark.parametrize("factor", [0.6, 1.0])
def test_a_size_that_no_adult_has_is_doubted(tmp_path, factor):
    doubts = look(tmp_path, DATA, AFFINE @ np.diag([factor, factor, factor, 1]))[1]
    assert [doubt.split(" mm, ")[0] for doubt in doubts] == (["its brain measures 88 x 109 x 90"] if factor < 1 else [])


def test_waves_around_the_brain_are_doubted_and_a_linear_rim_is_not(tmp_path):
    shell = [np.zeros_like(DATA, bool)]
    for reach in (1, 2, 3):
        wider = np.pad(shell[-1] | (DATA > 0), 1)
        near = np.any([np.roll(wider, step, axis) for axis in range(3) for step in (-1, 0, 1)], 0)[1:-1, 1:-1, 1:-1]
        shell.append(near)
        ringing = np.where(near & (DATA == 0), -2.0, DATA)
        doubts = look(tmp_path, ringing, AFFINE @ np.diag([0.85, 0.85, 0.85, 1]))[1]
        assert len(doubts) == (reach >= 2), reach
    assert doubts[0].startswith("it ends in 2 voxels or more of values that are all but the background's")


def test_brain_with_the_value_of_the_background_is_doubted(tmp_path):
    holes = DATA.copy()
    chosen = INSIDE[np.random.default_rng(0).permutation(len(INSIDE))[: len(INSIDE) // 50]]
    holes[tuple(chosen.T)] = 0
    (doubt,) = look(tmp_path, holes)[1]
    assert "of what is inside of it have the background's value" in doubt
    assert "if skull and scalp are in it, extract the brain" in doubt


def test_what_is_larger_than_any_brain_is_called_a_head_with_its_skull_and_what_is_smaller_is_not(tmp_path):
    for factor, named in ((1.5, True), (0.4, False)):
        with pytest.raises(VolumeError, match="a brain has 250 to 2500 ml") as caught:
            look(tmp_path, DATA, AFFINE @ np.diag([factor, factor, factor, 1]))
        assert ("not skull-stripped: extract the brain (for example with deepbet" in str(caught.value)) == named


@pytest.mark.parametrize(("factor", "doubted"), [(1.0, False), (0.5, True)])
def test_the_published_window_doubts_voxels_that_are_no_millimetres(tmp_path, factor, doubted):
    data, affine = brain_array((1.0 / factor, 1.0 / factor, 1.0 / factor))
    doubts = look(tmp_path, data, affine, PAPER_GRID)[1]
    assert [doubt.split(",")[0] for doubt in doubts] == (["its voxels measure 2 x 2 x 2 mm"] if doubted else [])
