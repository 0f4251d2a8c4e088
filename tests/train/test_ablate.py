import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from brains import brain_file
from filelock import FileLock
from safetensors.torch import save_file
from trees import mask, table

from ssn.core import look
from ssn.core.errors import DataError, OutputError, SsnError
from ssn.core.geometry import GridConfig
from ssn.core.likeness import Likeness
from ssn.core.tilt import Tilt
from ssn.train.ablate import run_arm, run_arms
from ssn.train.ablation_data import AblationData
from ssn.train.ablation_measure import Looked, false_positive_rate, measure_arm, rank_correlation
from ssn.train.ablation_report import COLUMNS, as_markdown, statistic, write_report
from ssn.train.arms import QUESTIONS, plan_arms
from ssn.train.calibrate import calibrate_detector
from ssn.train.checkpoint import build_detector
from ssn.train.datasets import open_split
from ssn.train.encoder import COMPACT, EncoderConfig, build_encoder
from ssn.train.evaluate import DetectorMethod, ScoredVolume, evaluate, summarise, validation_threshold
from ssn.train.features import FeatureReader
from ssn.train.network import FeatureNetwork, ModelConfig
from ssn.train.presets import FitOptions, preset

TINY = ModelConfig(
    encoder=EncoderConfig("tf_efficientnet_lite0", out_indices=(2,)),
    grid=GridConfig(plane=96, depth=96),  # small: a part of the brain
    width=None,
    whiten=True,
    blocks=1,
    plane_channels=8,
)
OPTIONS = FitOptions(epochs=1, batch=512, share=0.1, noise=1.0)
BASE = (ModelConfig.compact(), FitOptions(anomalies="image"), "imagenet")


def arms(*questions, **options):
    return {(arm.question, arm.value): arm for arm in plan_arms(questions, *BASE, **options)}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Weights of the compact encoder, in a file."""
    path = tmp_path_factory.mktemp("tuned") / "encoder.safetensors"
    save_file(build_encoder(COMPACT, "none").state_dict(), path)
    return path


@pytest.mark.parametrize(("weights", "name"), [("imagenet", "imagenet"), ("none", "random"), (Path("e"), "as given")])
def test_the_question_about_the_encoder_starts_from_the_weights_of_the_base(tmp_path, tuned, weights, name):
    if isinstance(weights, Path):
        weights = tmp_path / "other.safetensors"
        weights.write_bytes(b"others")
    planned = plan_arms(["encoder"], *BASE[:2], weights, tuned)
    assert [(arm.value, arm.weights) for arm in planned] == [
        (name, weights),
        ("tuned before", tuned),
        ("tuned during", weights),
    ]


def test_each_arm_differs_from_the_base_in_one_thing(tuned):
    planned = arms(*QUESTIONS, tuned=tuned)
    base = arms("loss")["loss", "spp"]
    assert {value for question, value in planned if question == "loss"} == {"spp", "triplet", "hard", "none"}
    assert planned["aggregation", "none"].config.grid.window == 1
    assert planned["aggregation", "attention"].config.pool == "attention"
    assert planned["code", "none"].config.plane_channels == planned["code", "none"].config.depth_channels == 0
    assert planned["encoder", "tuned before"].weights == tuned
    assert planned["encoder", "tuned during"].options.tune_encoder > 0
    assert {value for question, value in planned if question == "flow"} == {"8 blocks", "4 blocks", "2 blocks"}
    assert planned["width", "88 components"].config.components == 88
    assert planned["width", "hidden layers of 48"].config.hidden == 48
    assert planned["slices", "middle"].config.pool == "middle"
    assert not planned["whitening", "as they are"].config.whiten
    assert planned["width", "code twice as long"].config.depth_channels == 2 * base.config.depth_channels
    assert planned["rim", "brain only"].config.brain_only
    assert planned["alignment", "by itself"].config.aligned
    assert planned["anomalies", "image, 12 blobs"].options.blobs == 12
    assert planned["decay", "0.6 an epoch"].options.decay_epochs == 1
    for arm in planned.values():
        changed = [
            name for name in ("config", "options", "weights", "scoring") if getattr(arm, name) != getattr(base, name)
        ]  # fmt: skip
        assert len(changed) == (0 if arm.run == "base" else 1), arm


def test_the_base_answers_every_question_and_is_one_run():
    planned = arms(*(question for question in QUESTIONS if question != "encoder"))
    bases = {question: value for (question, value), arm in planned.items() if arm.run == "base"}
    assert bases == {
        "loss": "spp", "aggregation": "slab", "code": "in-plane + depth", "anomalies": "image", "slices": "slab",
        "whitening": "whitened", "decay": "0.9 every 10 epochs", "flow": "4 blocks", "width": "full",
        "alignment": "none", "calibration": "place", "normalisation": "robust", "rim": "with background",
    }  # fmt: skip
    assert planned["loss", "triplet"].options.anomalies == "noise", "the only ones that the triplet loss knows"


def test_questions_that_cannot_be_asked_are_refused(tmp_path):
    with pytest.raises(DataError, match="--tuned FILE"):
        arms("encoder")
    with pytest.raises(DataError, match="nowhere: no such"):
        arms("encoder", tuned=Path("nowhere"))
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(SsnError, match=r"notes\.txt"):
        arms("encoder", tuned=tmp_path / "notes.txt")
    with pytest.raises(DataError, match="not whitened cannot be aligned"):
        plan_arms(["alignment"], replace(TINY, whiten=False), OPTIONS, "none")
    with pytest.raises(DataError, match="cannot choose its anomalies"):
        plan_arms(["anomalies"], TINY, replace(OPTIONS, loss="none"), "none")
    for question in ("aggregation", "slices"):
        with pytest.raises(DataError, match="ask this with another --pool"):
            plan_arms([question], TINY.pooled("none"), OPTIONS, "none")


def test_a_file_is_no_folder_of_an_ablation(data, tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    for folder, reuse in ((tmp_path / "notes.txt", None), (tmp_path / "new", tmp_path / "notes.txt")):
        with pytest.raises(OutputError, match=r"notes.txt is a file"):
            run_arms([], 1, data, folder, reuse=reuse)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    rows = []
    splits = ("train", "train", "calibration", "calibration", "validation", "test", "test", "test")
    for seed, split in enumerate(splits):
        lesion = split == "validation" or (split == "test" and seed != 7)
        brain_file(folder / f"{seed}.nii", (6.0, 6.0, 6.0), lesion=lesion, seed=seed, radius=20.0)
        rows.append(f"{seed}.nii,{'m.nii' if lesion else ''},{split}")
    mask(folder / "m.nii", radius=20.0)
    path = table(folder, *rows)
    return AblationData(*(open_split(path, s) for s in ("train", "calibration", "validation", "test")))


def test_two_arms_are_trained_measured_reported_and_kept(data, tmp_path):
    planned = [arm for arm in plan_arms(["loss"], TINY, OPTIONS, "none") if arm.value in ("spp", "none")]
    results = {arm.run: [run_arm(arm, 0, data, tmp_path)] for arm in planned}
    rows = write_report(tmp_path, planned, results)
    assert [(row["arm"], row["base"]) for row in rows] == [("spp", True), ("none", False)]
    for row in rows:
        assert 0 <= row["false_positive_rate"]["mean"] <= 1
        assert -1 <= row["rank_correlation"]["mean"] <= 1
        assert 0 <= row["auprc"]["mean"] <= 1
    assert json.loads((tmp_path / "ablation.json").read_text()) == rows
    assert "| spp * | 1 |" in (tmp_path / "ablation.md").read_text()
    assert (tmp_path / "ablation.png").stat().st_size > 1000
    assert {path.name for path in (tmp_path / "runs").glob("*.json")} == {"base-seed0.json", "loss-none-seed0.json"}

    untouched = (tmp_path / "runs" / "base-seed0.json").stat().st_mtime_ns
    said = []
    assert run_arm(planned[0], 0, data, tmp_path, progress=said.append) == results["base"][0]
    assert said == [], "nothing was trained again"
    assert (tmp_path / "runs" / "base-seed0.json").stat().st_mtime_ns == untouched
    other = replace(planned[0], options=replace(planned[0].options, epochs=2))
    with pytest.raises(DataError, match=r"base-seed0\.json: was made with other settings"):
        run_arm(other, 0, data, tmp_path)


def test_the_table_says_mean_and_spread_over_seeds():
    row = {"question": "loss", "arm": "spp", "base": True, "seeds": [0, 1]}
    row |= {name: statistic([0.4, 0.6]) for name in COLUMNS} | {"volume_auroc": statistic([None, None])}
    text = as_markdown([row])
    assert "| spp * | 2 | 0.500 ± 0.141 |" in text
    assert "| - |" in text, "what was not measured is not a number"


def test_false_positives_are_counted_at_the_level_that_the_recall_needs():
    score = np.arange(20, dtype=np.float32).reshape(20, 1, 1)
    brain = np.ones((20, 1, 1), bool)
    lesion = np.zeros((20, 1, 1), bool)
    lesion[10:20:2] = True  # scores 10, 12, 14, 16, 18; 80 % recall needs 12; healthy 13, 15, 17, 19 are above
    scored = ScoredVolume(score, brain, 0.0, 0.001)
    assert false_positive_rate(scored, lesion, 0.8) == pytest.approx(4 / 15)


def test_rank_correlation_is_of_ranks():
    assert rank_correlation([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 2, 3], [1, 1, 1]) is None, "maps rescaled to 0..1 all have a slice of 1"


def test_a_run_that_another_process_has_taken_comes_last(data, tmp_path):
    planned = [arm for arm in plan_arms(["loss"], TINY, OPTIONS, "none") if arm.value in ("spp", "none")]
    claims = tmp_path / "runs" / "claims"
    claims.mkdir(parents=True)
    others = FileLock(claims / "base-seed0.lock")
    others.acquire()
    started = []

    def watch(doing):
        started.append(doing)
        if len(started) == 2 * 3:  # training and measuring of the three that are free
            others.release()  # the other process has died without a result

    results = run_arms(planned, 2, data, tmp_path, progress=watch)
    trained = [doing.removesuffix(": training") for doing in started if doing.endswith("training")]
    assert trained == ["base seed 1", "loss-none seed 0", "loss-none seed 1", "base seed 0"]
    assert [result["seed"] for result in results["base"]] == [0, 1]


def test_other_scoring_takes_the_same_model(data, tmp_path):
    planned = plan_arms(["calibration"], TINY, OPTIONS, "none")
    results = run_arms(planned, 1, data, tmp_path)
    assert len(list((tmp_path / "models").glob("*/model.safetensors"))) == 1
    place, brain, volume = (results[arm.run][0]["summary"]["all"] for arm in planned)
    assert place["auroc"] != brain["auroc"]
    assert brain["auroc"] == volume["auroc"], "a rescaled map ranks a volume's own voxels as before"


def test_another_ablation_takes_the_models_of_the_first_to_another_data_set(data, tmp_path):
    planned = plan_arms(["loss"], TINY, OPTIONS, "none")[:1]
    run_arms(planned, 1, data, tmp_path / "first")
    (model,) = (tmp_path / "first" / "models").glob("*/model.json")
    written = model.stat().st_mtime_ns
    elsewhere = replace(data, test=data.test[1:])
    run_arms(planned, 1, elsewhere, tmp_path / "second", reuse=tmp_path / "first")
    assert model.stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / "second").iterdir()] == ["runs"]


@pytest.mark.parametrize("aligned", [False, True])
def test_a_model_is_measured_as_ssn_train_evaluate_measures_it(data, tmp_path, aligned):
    torch.manual_seed(0)
    config = replace(TINY, aligned=aligned)
    detector = build_detector(config, FeatureNetwork(config, "none").eval(), 0)
    detector.flow.eval()
    arm = plan_arms(["loss"], config, OPTIONS, "none")[0]
    found = measure_arm(arm, detector, data, tmp_path, Looked())

    reader = FeatureReader(detector.network, tmp_path)
    calibration = calibrate_detector(detector, [case.image for case in data.calibration], reader, sigma=4.0, rate=0.005)
    method = DetectorMethod(detector, calibration, tmp_path, align=aligned)
    rows = evaluate(method, data.test, validation_threshold(method, data.validation))
    assert found["summary"] == summarise(rows)


def test_a_checkpoint_too_looks_at_a_tilted_head_made_straight_and_keeps_no_features_of_it(data, tmp_path, monkeypatch):
    torch.manual_seed(0)
    detector = build_detector(TINY, FeatureNetwork(TINY, "none").eval(), 0)
    detector.flow.eval()
    reader = FeatureReader(detector.network, None)
    calibration = calibrate_detector(detector, [case.image for case in data.calibration], reader, sigma=4.0, rate=0.005)
    scan, cache = brain_file(tmp_path / "scan.nii", (2.0, 2.0, 2.0)), tmp_path / "cache"
    method = DetectorMethod(detector, calibration, cache)
    as_it_lies = method(scan)
    kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    monkeypatch.setattr(look, "compare", lambda *given: Likeness(0.9, 0.9, tilt=Tilt(pitch=15)))
    turned = method(scan)
    np.testing.assert_array_equal(turned.brain, as_it_lies.brain)
    assert np.abs(turned.score_map - as_it_lies.score_map)[turned.brain].max() > 0.1, "the model saw another volume"
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == kept
    assert len(kept) == 1


def test_other_volumes_of_the_same_names_are_other_volumes(data, tmp_path):
    (arm,) = plan_arms(["loss"], TINY, OPTIONS, "none")[:1]
    run_arm(arm, 0, data, tmp_path / "first")
    (tmp_path / "others").mkdir()
    others = {}
    for split, cases in vars(data).items():
        moved = [replace(case, image=tmp_path / "others" / case.image.name) for case in cases]
        for case in moved:
            brain_file(
                case.image, (6.0, 6.0, 6.0), lesion=bool(case.mask), seed=200 + int(case.image.stem), radius=20.0
            )
        others[split] = moved
    with pytest.raises(DataError, match="other settings or volumes"):
        run_arm(arm, 0, AblationData(**others), tmp_path / "first")
    run_arm(arm, 0, AblationData(**others), tmp_path / "second", reuse=tmp_path / "first")
    assert len(list((tmp_path / "first" / "models").glob("*/model.json"))) == 2, "no model of the first ones is reused"


def test_a_base_that_does_not_whiten_is_given_neither_components_nor_a_code_that_it_lacks():
    config, options = preset("paper")[:2]
    assert not config.whiten
    planned = {arm.value: arm.config for arm in plan_arms(["width"], config, options, "none")}
    assert not any("components" in value for value in planned)
    assert planned["code twice as long"].depth_channels == 2 * config.depth_channels == 0
