"""Methods that were measured before: taken as they are, never where anything that decides the result has changed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import written_engines
from trees import mask, volume

from ssn.benchmarks.accuracy import kept as kept_results
from ssn.benchmarks.accuracy import suite
from ssn.benchmarks.accuracy.backbone import Backbone
from ssn.benchmarks.accuracy.kept import Kept, describe_methods, load_measured, save_measured
from ssn.benchmarks.accuracy.measured import Splits, measure
from ssn.benchmarks.accuracy.workers import Measured
from ssn.core.bundle import load_bundle
from ssn.core.errors import DataError
from ssn.train.cases import Case
from ssn.train.references import intensity_method

BRIGHT, DARK = (intensity_method(bright=bright, sigma=4.0) for bright in (True, False))


def quiet(what, step, steps):
    pass


def never():
    raise AssertionError("it was measured before")


@pytest.fixture
def splits(tmp_path):
    def case(name, split, lesion="", seed=0):
        image = volume(tmp_path / "volumes" / f"{name}.nii.gz", seed, lesion=bool(lesion))
        where = mask(tmp_path / "volumes" / f"{name}-mask.nii.gz") if lesion else None
        return Case(image, name, name, split, where, lesion, 17.0 if lesion else None)

    return Splits(
        calibration=[case("c", "calibration", seed=1)],
        validation=[case("v", "validation", "tumour", seed=2)],
        test=[case("t", "test", "stroke", seed=3), case("h", "test", seed=4)],
        controls={"elsewhere": [case("e", "calibration", seed=5)]},
    )


def kept(tmp_path, **made_of):
    return Kept(tmp_path / "measured", made_of)


def test_a_kept_method_is_read_back_whole_under_the_name_it_has_now(splits, tmp_path):
    found = Measured("bright", measure("bright", BRIGHT, splits, {"t": 12}, quiet), {"learning": 0.5, "measuring": 2.0})
    save_measured(tmp_path / "a.npz", found)
    again = load_measured(tmp_path / "a.npz", "intensity")
    assert (again.name, again.seconds) == ("intensity", found.seconds)
    assert again.accuracy.as_json() == found.accuracy.as_json()
    for one, other in zip(
        again.accuracy.pooled.precision_recall(), found.accuracy.pooled.precision_recall(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(again.accuracy.slices["t"], found.accuracy.slices["t"])


def test_what_was_cut_off_goes_on_and_measures_only_what_is_missing(splits, tmp_path):
    def broken():
        raise DataError("out of memory")

    folder = kept(tmp_path, bright={"way": 1}, dark={"way": 2})
    output = tmp_path / "a.json"
    with pytest.raises(DataError, match="out of memory"):
        suite.compare(lambda tell: {"bright": lambda: BRIGHT, "dark": broken}, splits, output, quiet, kept=folder)
    first = json.loads(output.read_text())
    results = suite.compare(lambda tell: {"dark": lambda: DARK, "bright": never}, splits, output, quiet, kept=folder)
    assert list(results) == ["dark", "bright"], "the order of the table"
    assert results["bright"] == first["bright"]
    pictures = {path.name: path.read_bytes() for path in tmp_path.glob("a-*.png")}
    assert len(pictures) == 2
    again = suite.compare(
        lambda tell: {"dark": never, "bright": never}, splits, output, quiet, processes=2, kept=folder
    )
    assert again == results
    assert {path.name: path.read_bytes() for path in tmp_path.glob("a-*.png")} == pictures


def test_other_volumes_masks_slices_or_settings_are_measured_anew(splits, tmp_path):
    folder = kept(tmp_path, z={"sigma": 4.0})
    paths = [
        folder.paths(splits, {"t": 12})["z"],
        folder.paths(splits, {"t": 13})["z"],
        folder.paths(replace(splits, test=splits.test[:1]), {"t": 12})["z"],
        folder.paths(replace(splits, controls={"there": splits.controls["elsewhere"]}), {"t": 12})["z"],
        kept(tmp_path, z={"sigma": 3.0}).paths(splits, {"t": 12})["z"],
        *(
            folder.paths(replace(splits, test=[replace(splits.test[0], **other), splits.test[1]]), {"t": 12})["z"]
            for other in ({"lesion": "tumour"}, {"volume_ml": 3.0}, {"name": "u"})
        ),
    ]
    mask(splits.test[0].mask, radius=20.0)
    paths.append(folder.paths(splits, {"t": 12})["z"])
    volume(splits.calibration[0].image, seed=77)
    paths.append(folder.paths(splits, {"t": 12})["z"])
    assert len(set(paths)) == len(paths), "the last two are of other contents in the same files"


def test_what_decides_a_method_s_result(tmp_path):
    train = [volume(tmp_path / "train" / f"{seed}.nii.gz", seed) for seed in range(2)]
    model = tmp_path / "model"
    (model / "features").mkdir(parents=True)
    for name in ("model.safetensors", "model.json", "calibration.npz"):
        (model / name).write_bytes(b"first")
    weights = tmp_path / "encoder.safetensors"
    weights.write_bytes(b"weights")
    names = ("z-score", "autoencoder 3d", "padim")

    def described(train=train, backbone=Backbone(weights="none"), sigma=4.0):  # noqa: B008 - frozen
        return json.loads(json.dumps(describe_methods({"ssn": model}, names, train, backbone, sigma)))

    def changed(**given):
        return {name for name, of in described(**given).items() if of != before[name]}

    before = described()
    assert list(before) == ["ssn", *names]
    assert changed() == set()
    assert changed(train=train[:1]) == changed(sigma=3.0) == set(names)
    assert changed(backbone=Backbone(weights="none", seed=1)) == {"padim"}
    (model / "features" / "a.safetensors").write_bytes(b"cached")
    assert changed() == set(), "cached features are not the model"
    (model / "accuracy.json").write_text("{}")
    assert changed() == set(), "nor is what was measured of it"
    (model / "calibration.npz").write_bytes(b"others")
    assert changed() == {"ssn"}
    assert describe_methods({}, ["z-score"], train, Backbone(weights=tmp_path / "none.safetensors"), 4.0), (
        "no peer asks"
    )
    of_a_file = described(backbone=Backbone(weights=weights))
    weights.write_bytes(b"others")
    assert described(backbone=Backbone(weights=weights))["padim"] != of_a_file["padim"], "contents count, not the name"


def test_other_packages_and_another_engine_are_measured_anew(tiny_bundle, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")

    def described():
        return describe_methods({"ssn": folder}, ["z-score"], [], None, 4.0)

    before = described()
    assert described() == before
    written_engines.write(load_bundle(folder))
    with_engine = described()
    assert [name for name in before if with_engine[name] != before[name]] == ["ssn"]
    written_engines.write(load_bundle(folder), precision="fp32")
    assert described()["ssn"] != with_engine["ssn"]
    monkeypatch.setattr(kept_results, "package_versions", lambda: {"torch": "0"})
    assert all(described()[name] != with_engine[name] for name in before)


@pytest.mark.parametrize("spoil", [lambda data: data[:-40], lambda data: b"not a result", lambda data: b""])
def test_a_damaged_file_is_named_with_what_to_do(splits, tmp_path, spoil):
    folder = kept(tmp_path, bright={})
    make = lambda tell: {"bright": lambda: BRIGHT}  # noqa: E731
    suite.compare(make, splits, tmp_path / "a.json", quiet, kept=folder)
    (path,) = folder.folder.iterdir()
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=r"is damaged .*; remove it to have this method measured again") as error:
        suite.compare(make, splits, tmp_path / "a.json", quiet, kept=folder)
    assert str(path) in str(error.value)
