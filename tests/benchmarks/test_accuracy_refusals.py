"""What a comparison lacks is said before it computes anything; and where its mask begins."""

from pathlib import Path

import numpy as np
import pytest

from ssn.benchmarks.accuracy import methods, suite
from ssn.benchmarks.accuracy.backbone import Backbone
from ssn.core.errors import BackendError, DataError, OutputError
from ssn.train.evaluate import mask_threshold


def quiet(what, step, steps):
    pass


def test_the_json_has_a_name_of_its_own(tmp_path):
    with pytest.raises(OutputError, match=r"a\.md: is the name of the table; give the JSON's, .*a\.json"):
        suite.check_output(tmp_path / "a.md", overwrite=True)
    assert not list(tmp_path.iterdir())


def test_what_a_method_lacks_is_said_before_any_computing(monkeypatch):
    monkeypatch.setattr(methods, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"needs monai, which is not installed: pip install '\.\[bench\]'"):
        methods.choose_methods(["autoencoder 3d"])
    with pytest.raises(DataError, match="pca needs two healthy volumes"):
        methods.known_methods(["z-score", "pca"], [Path("one.nii")], Backbone(), 4.0, quiet)


def test_the_mask_of_the_validation_threshold_holds_the_voxel_that_gave_it():
    scores, lesion = np.array([0, 0, 1, 1], np.float32), np.array([False, False, True, True])
    assert ((scores > mask_threshold([scores], [lesion])) == lesion).all()


def test_a_method_of_an_unknown_name_is_refused_with_the_names():
    with pytest.raises(DataError, match=r"magic: no such method; there are: z-score, .*fastflow, all") as error:
        methods.choose_methods(["pca", "magic"])
    assert all(name in str(error.value) for name in methods.NAMES)
