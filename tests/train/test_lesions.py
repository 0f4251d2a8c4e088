"""Lesions: as large as was asked for, in the tissue and at the depth where such lesions are."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from ssn.train import lesions
from ssn.train.anatomy import TISSUE_SIGNAL, Tissue
from ssn.train.lesions import LESION_KINDS, VOLUME_RANGE_ML, Lesion, Part, blend, draw_lesion

SHAPE, CENTRE, SEMI_AXES = (76, 88, 70), (36, 45, 33), (33, 40, 30)


@pytest.fixture(scope="module")
def tissue():
    """An ellipsoid of white matter in a bark of grey, under 2 mm of fluid, a ventricle of it inside."""
    offsets = np.indices(SHAPE) - np.array(CENTRE).reshape(3, 1, 1, 1)
    radius = np.sqrt(sum((axis / semi) ** 2 for axis, semi in zip(offsets, SEMI_AXES, strict=True)))
    brain = radius < 1
    fluid = (radius > 0.94) | (sum((axis - at) ** 2 for axis, at in zip(offsets, (5, 8, 3), strict=True)) < 49)
    grey = (radius > 0.84) & ~fluid
    fractions = np.stack([fluid, grey, ~fluid & ~grey]) & brain
    return Tissue(torch.from_numpy(fractions).float(), torch.zeros(SHAPE), torch.from_numpy(brain))


def drawn(kind, tissue, seed):
    return draw_lesion(kind, tissue, np.random.default_rng(seed), seed)


def depth_of(tissue):
    return torch.from_numpy(ndimage.distance_transform_edt(tissue.brain.numpy()))


@pytest.mark.parametrize(("kind", "ml"), [("tumour", 9.0), ("wmh", 3.0), ("stroke", 6.0), ("atrophy", 5.0)])
def test_a_lesion_is_as_large_as_asked_and_in_solid_tissue(tissue, kind, ml, monkeypatch):
    monkeypatch.setitem(VOLUME_RANGE_ML, kind, (ml, ml))
    masks = []
    for seed in range(3):
        lesion = drawn(kind, tissue, seed)
        assert lesion.kind == kind
        assert lesion.volume_ml == pytest.approx(ml, abs=0.003)
        assert tissue.brain[lesion.mask].all()
        assert (tissue.fractions[0][lesion.mask] == 0).all(), "no lesion of fluid"
        changed = torch.stack([part.weight for part in lesion.parts]).amax(0)
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert changed[lesion.mask].min() > 0.25, "all that is in the mask is changed"
        assert (changed > 0).sum() < 2 * lesion.mask.sum(), "and little else"
        masks.append(lesion.mask)
    assert torch.equal(drawn(kind, tissue, 2).mask, masks[2]), "a seed is a lesion"
    ragged = draw_lesion(kind, tissue, np.random.default_rng(2), 3).mask
    assert 0 < (ragged ^ masks[2]).sum() < masks[2].sum(), "at the same place it has an edge of its own"
    assert (masks[0] & masks[1]).sum() < 0.7 * masks[0].sum(), "another seed is another one"


def test_each_kind_begins_where_such_lesions_do(tissue, monkeypatch):
    depth, candidates = depth_of(tissue), []

    class FoundError(Exception):
        pass

    def found(places, rng):
        candidates.append(places)
        raise FoundError

    monkeypatch.setattr(lesions, "_pick", found)
    for kind in LESION_KINDS:
        with pytest.raises(FoundError):
            drawn(kind, tissue, 1)
    tumour, wmh, stroke, atrophy = candidates
    assert 4 <= depth[atrophy].min() < depth[atrophy].max() < 15, "the cortex"
    assert depth[tumour].min() >= 8
    assert depth[stroke].min() > 15, "a vessel's territory has its apex inside"
    assert depth[wmh].min() >= 10, "not what partial volume leaves of white matter under the cortex"
    assert (tissue.fractions[2][wmh] > 0.75).all()
    assert all((tissue.fractions[0][one] < 0.7).all() for one in (tumour, wmh, atrophy))


@pytest.mark.parametrize("kind", ["tumour", "wmh", "atrophy"])
def test_a_lesion_lies_where_it_was_placed(tissue, kind, monkeypatch):
    place = (30, 52, 44)
    monkeypatch.setitem(VOLUME_RANGE_ML, kind, (2.0, 2.0))
    monkeypatch.setattr(lesions, "_pick", lambda candidates, rng: place)
    mask = drawn(kind, tissue, 1).mask
    np.testing.assert_allclose(mask.nonzero().double().mean(0), place, atol=3)
    if kind == "wmh":
        assert (tissue.fractions[2][mask] > 0.75).all()


def test_a_stroke_opens_from_inside_towards_the_nearest_surface(tissue, monkeypatch):
    monkeypatch.setitem(VOLUME_RANGE_ML, "stroke", (4.0, 4.0))
    for axis, side in ((0, -1), (1, 1), (2, -1)):
        apex = [*CENTRE]
        apex[axis] += side * (SEMI_AXES[axis] - 20)
        monkeypatch.setattr(lesions, "_pick", lambda candidates, rng, at=tuple(apex): at)
        places = drawn("stroke", tissue, 1).mask.nonzero().double()
        away = side * (places[:, axis] - apex[axis])
        assert away.min() > -6
        assert away.max() > 14, "as far as the cortex"
        near, far = (places[(away > low) & (away <= low + 4)] for low in (4, 10))
        assert far.std(0).norm() > 1.2 * near.std(0).norm(), "a wedge"


def test_a_tumour_pushes_tissue_away_from_itself_and_less_the_farther(tissue, monkeypatch):
    monkeypatch.setitem(VOLUME_RANGE_ML, "tumour", (4.0, 4.0))
    monkeypatch.setattr(lesions, "_pick", lambda candidates, rng: (30, 52, 38))
    lesion = drawn("tumour", tissue, 1)
    offsets = torch.from_numpy(np.indices(SHAPE) - np.array((30, 52, 38)).reshape(3, 1, 1, 1)).float()
    distance = offsets.norm(dim=0)
    outwards = (lesion.push * offsets).sum(0) / distance.clamp_min(1)
    assert (outwards[distance > 2] > 0).all()
    assert 0.9 < outwards[(distance > 7) & (distance < 9)].mean() < 4, "a tenth to three tenths of its 10 mm"
    assert outwards[distance > 40].mean() < 0.5 * outwards[(distance > 7) & (distance < 9)].mean()
    _, rim, core = (part.weight > 0.5 for part in lesion.parts)
    assert core.any()
    assert rim[core].all()
    assert rim.sum() > 1.5 * core.sum(), "a rim around the core"
    assert lesion.mask.sum() > 1.1 * rim.sum(), "and oedema around both"
    assert all(drawn(kind, tissue, 1).push is None for kind in ("wmh", "atrophy"))


def test_small_lesions_are_as_frequent_as_large_ones_in_ratios(tissue, monkeypatch):
    low, high = VOLUME_RANGE_ML["wmh"]
    asked = []
    monkeypatch.setitem(lesions._MAKERS, "wmh", lambda tissue, ml, *rest: asked.append(ml))
    for seed in range(300):
        drawn("wmh", tissue, seed)
    assert low <= min(asked) < 1.2 * low
    assert 0.8 * high < max(asked) <= high
    assert np.median(asked) == pytest.approx(np.sqrt(low * high), rel=0.4), "or half of them would be above 8 ml"


@pytest.mark.parametrize("contrast", ["t1", "t2", "flair"])
def test_a_lesion_looks_in_each_contrast_as_a_radiologist_knows_it(contrast):
    fluid, grey, white = (mean for mean, _ in TISSUE_SIGNAL[contrast])

    def level(name):
        whole = Lesion("wmh", (Part(name, torch.ones(1, 1, 1)),), torch.ones(1, 1, 1, dtype=torch.bool), None)
        people = (blend(torch.zeros(1, 1, 1), whole, contrast, np.random.default_rng(seed)) for seed in range(20))
        return np.mean([float(signal) for signal in people])

    assert level("atrophy") == pytest.approx(fluid, abs=0.05), "fluid where tissue was"
    for name in ("wmh", "stroke", "oedema"):
        assert level(name) < grey if contrast == "t1" else level(name) > max(grey, white), name


def test_parts_are_laid_over_each_other_in_order_and_leave_the_rest_alone():
    outer, inner = torch.tensor([0, 0.5, 1, 1]).view(4, 1, 1), torch.tensor([0, 0, 0, 1.0]).view(4, 1, 1)
    lesion = Lesion("tumour", (Part("oedema", outer), Part("core", inner)), outer > 0.5, None)
    found = blend(torch.full((4, 1, 1), 0.84), lesion, "t1", np.random.default_rng(0)).flatten()
    assert found[0] == pytest.approx(0.84)
    assert 0.42 <= found[2] <= 0.58
    assert found[1] == pytest.approx((0.84 + float(found[2])) / 2, abs=1e-6)
    assert 0.22 <= found[3] <= 0.36
