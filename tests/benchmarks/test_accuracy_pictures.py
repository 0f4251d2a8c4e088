"""Pictures of a comparison are drawn of whatever it was measured on."""

import numpy as np
from brains import save
from trees import volume

from ssn.benchmarks.accuracy.pictures import choose_slices, draw_montage
from ssn.core.volume import read_volume
from ssn.train.cases import Case


def test_a_slice_without_brain_and_a_kind_that_looks_like_a_formula_are_drawn(tmp_path):
    image = read_volume(volume(tmp_path / "p.nii.gz"))
    last = image.data.shape[2] - 1
    outside = np.zeros(image.data.shape)
    outside[5:12, 5:9, last] = 1
    mask = save(tmp_path / "mask.nii.gz", outside, image.affine, dtype=np.uint8)
    (shown,) = choose_slices([Case(image.path, "p", "p", "test", mask, r"$\no{$")])
    assert shown.index == last
    assert not shown.brain.any()
    draw_montage([shown], {}).savefig(tmp_path / "montage.png")
    assert (tmp_path / "montage.png").stat().st_size
