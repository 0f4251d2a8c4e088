"""A head that is made straight is looked at as such, and what could not be undone of its tilt is said."""

from dataclasses import replace

import pytest
from brains import brain_array, save

from ssn.core import look
from ssn.core.brain_doubts import brain_doubts
from ssn.core.bundle import load_bundle
from ssn.core.geometry import GridConfig
from ssn.core.likeness import Likeness, grey_blocks
from ssn.core.look import look_at
from ssn.core.slices import cut_slices
from ssn.core.tilt import Tilt
from ssn.core.volume import read_volume
from ssn.runtime.packaged import DEFAULT_BUNDLE

CUT = {"grid": GridConfig(), "cells": 48}
OTHERS = "the healthy t1 volumes"


def head(folder, tilt):
    return read_volume(save(folder / "scan.nii", *brain_array((2.0, 2.0, 2.0), turn=tilt.matrix)))


@pytest.fixture
def calibration(tmp_path):
    grey = grey_blocks(cut_slices(head(tmp_path, Tilt()), **CUT))
    return replace(load_bundle(DEFAULT_BUNDLE).calibration, grey=grey)


def seen(volume, calibration):
    return look_at(volume, lambda volume: cut_slices(volume, **CUT), calibration)


def test_a_tilt_that_was_undone_is_not_doubted(tmp_path, calibration):
    found = seen(head(tmp_path, Tilt(pitch=18)), calibration)
    assert found.turn is not None
    assert found.likeness.doubts(OTHERS, straightened=True) == []


def test_a_head_that_lies_straight_enough_is_looked_at_as_it_lies_and_compared(tmp_path, calibration):
    found = seen(head(tmp_path, Tilt(pitch=8)), calibration)
    assert found.likeness.tilt.pitch == pytest.approx(8, abs=2)
    assert found.turn is None
    assert found.stack is found.read


def test_what_is_left_of_a_tilt_is_doubted(tmp_path, calibration, monkeypatch):
    wrong = Likeness(0.9, 0.9, tilt=Tilt(roll=-14))
    monkeypatch.setattr(look, "compare", lambda *given: wrong)
    found = seen(head(tmp_path, Tilt(roll=14)), calibration)
    assert found.turn is not None
    (doubt,) = found.likeness.doubts(OTHERS, straightened=True)
    assert doubt.startswith("its head was turned straight by 14 degrees, and is still tilted by 2")


def test_what_the_straightened_head_hides_from_the_model_is_said(tmp_path, calibration):
    volume = head(tmp_path, Tilt(pitch=18))
    found = seen(volume, calibration)
    hidden = replace(found, read=replace(found.read, placement=_shifted(found.read)))
    assert hidden.read.unseen > 0
    assert brain_doubts(volume, hidden) == [], "the model does not look at that"
    hidden = replace(found, stack=replace(found.stack, placement=_shifted(found.stack)))
    (doubt,) = brain_doubts(volume, hidden)
    millilitres = hidden.stack.unseen / 1000
    assert doubt.startswith(f"{millilitres:.0f} ml of it lie outside"), "voxels of 1 mm"


def _shifted(stack):
    x, y, z = stack.placement.axes
    return replace(stack.placement, axes=(x, y, replace(z, offset=z.offset - 30)))
