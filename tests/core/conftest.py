"""Where the tests of reading put their files."""

import pytest


@pytest.fixture
def nii(tmp_path):
    return tmp_path / "patient7.nii"


@pytest.fixture
def packed(tmp_path):
    return tmp_path / "patient7.nii.gz"
