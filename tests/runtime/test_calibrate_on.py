"""What a calibration asks of a backend, and what it says and keeps of each volume; no network computes here."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from brains import brain_array, save

from ssn.core.calibrate import FOLDS
from ssn.core.errors import DataError
from ssn.core.hashed_files import file_sha256
from ssn.core.likeness import Likeness, grey_blocks
from ssn.core.look import look_at
from ssn.core.tilt import Tilt
from ssn.core.volume import read_volume
from ssn.runtime.align import measure_alignment, moments_of
from ssn.runtime.backend import Batch
from ssn.runtime.calibrate import calibrate_on, of_contrast
from ssn.runtime.healthy import FEWEST

CHANNELS = 2


class Backend:
    """Answers with noise, and features of zeros, and keeps the batches that it was given."""

    max_slices = None

    def __init__(self):
        self.batches = []

    def run(self, batches, times):
        rng = np.random.default_rng(0)
        for batch in batches:
            self.batches.append(batch)
            yield rng.normal(size=batch.places.size).astype(np.float32)

    def features(self, batches):
        for batch in batches:
            self.batches.append(batch)
            yield np.zeros((len(batch.slices) // 3, CHANNELS, 48, 48), np.float32)

    def describe(self):
        return {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """The fewest, of which the first has slices thin enough to be made straight."""
    folder = tmp_path_factory.mktemp("healthy")
    sizes = [2.0] + (FEWEST - 1) * [6.0]
    return [
        save(folder / f"s{size}_{at}.nii", *brain_array(3 * [size], lesion=False, seed=at))
        for at, size in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def knowing(bundle, scans):
    """The bundle, which knows how healthy volumes look."""
    grey = grey_blocks(bundle.spec.cut(read_volume(scans[0])))
    return replace(bundle, calibration=replace(bundle.calibration, grey=grey, sigma=4.0, threshold_rate=0.02))


def test_moments_are_of_the_features_at_a_batch_s_places_and_of_no_others():
    rows, columns, first = 3, 3, 4
    chosen = [(4, 0, 2), (5, 2, 1), (5, 1, 0)]  # window, row, column
    features = np.random.default_rng(0).normal(size=(2, 2, CHANNELS, rows, columns)).astype(np.float32)
    places = np.array([window * rows * columns + row * columns + column for window, row, column in chosen])
    batches = [Batch(None, places, first), Batch(None, places + 2 * rows * columns, first + 2)]
    found = moments_of(features, batches, SimpleNamespace(spec=SimpleNamespace(cells=3)), np.zeros(CHANNELS))
    expected = np.stack([part[window - first, :, row, column] for part in features for window, row, column in chosen])
    assert found.count == 6
    np.testing.assert_allclose(found.mean, expected.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.covariance, np.cov(expected.T, bias=True), rtol=1e-4, atol=1e-6)


def test_a_tilted_head_is_calibrated_on_and_aligned_as_the_model_looks_at_it(knowing, scans, monkeypatch):
    monkeypatch.setattr("ssn.core.look.compare", lambda *given: Likeness(0.9, 0.9, tilt=Tilt(pitch=18)))
    looks = [look_at(read_volume(path), knowing.spec.cut, knowing.calibration) for path in scans]
    assert [look.turn is not None for look in looks] == [True] + (FEWEST - 1) * [False]
    expected = np.concatenate([look.stack.occupied_places(knowing.spec.occupancy) for look in looks])
    calibrating, aligning = Backend(), Backend()
    calibration, _ = calibrate_on(scans, knowing, lambda bundle: calibrating, batch=3)
    measure_alignment(scans, knowing, SimpleNamespace(mean=np.zeros(CHANNELS)), aligning, batch=3)
    for backend in (calibrating, aligning):
        np.testing.assert_array_equal(np.concatenate([batch.places for batch in backend.batches]), expected)
        assert max(len(batch.slices) for batch in backend.batches) == 3, "at once, as asked for"
    assert (calibration.sigma, calibration.threshold_rate) == (4.0, 0.02), "the bundle's"


def test_what_is_said_and_kept_of_each_volume_is_its_own(bundle, tmp_path):
    paths = []
    for seed in range(FOLDS + 2):
        data, affine = brain_array((6.0, 6.0, 6.0), lesion=False, seed=seed)
        if seed == FOLDS:  # in the first fold, so that it is read before the second volume
            data = data[:, :, ::-1]
        if seed == 3:
            data[8:14, 10:16, 8:14] = 0
        paths.append(save(tmp_path / f"s{seed}.nii", data, affine))
    said = []
    alignment = SimpleNamespace(aligned=lambda left_out: bundle, share=0.5)
    _, record = calibrate_on(paths, bundle, lambda bundle: Backend(), alignment=alignment, doubted=said.append)
    assert record["volume_sha256"] == [file_sha256(path) for path in paths]
    (hole, turned) = sorted(said)
    assert hole.startswith(f"{paths[3]}: ") and "of what is inside of it have the background's value" in hole
    assert turned.startswith(f"{paths[FOLDS]}: ") and "turned upside down" in turned


def test_too_few_volumes_are_refused_by_each_that_measures_them(bundle, scans):
    few = scans[: FEWEST - 1]
    with pytest.raises(DataError, match="4 healthy volumes are too few"):
        calibrate_on(few, bundle, pytest.fail)
    with pytest.raises(DataError, match="4 healthy volumes are too few"):
        measure_alignment(few, bundle, SimpleNamespace(mean=np.zeros(CHANNELS)), Backend())


def test_the_same_contrast_in_other_letters_is_no_other(knowing):
    assert of_contrast(knowing, "T1") is knowing
    other = of_contrast(knowing, "FLAIR")
    assert (other.spec.modality, other.calibration.grey) == ("FLAIR", None)
