"""The page of a cohort: every volume in it, every link to a file that is there, and no markup out of a name."""

import csv
import os
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from brains import brain_array, brain_file, save

from ssn.core.bundle import load_bundle
from ssn.core.errors import OutputError
from ssn.runtime.cohort import run_jobs
from ssn.runtime.jobs import Job, Outcome, find_jobs
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.overview import write_overview

NAMES = ("a&b <i>#1%20?", 'quote"d', "plain_T2w")


class Page(HTMLParser):
    """Texts, links and pictures of a page."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data):
        self.texts.append(data)


def run(scans, out, bundle_folder, picture=True, **options):
    bundle = load_bundle(bundle_folder)
    settings = {"threshold": None, "batch": 24, "picture": picture, "overwrite": False, "overview": True} | options
    with OnnxRuntimeBackend(bundle, threads=1) as backend:
        return run_jobs(find_jobs([scans]), out, bundle, backend, **settings)


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        brain_file(folder / f"{name}.nii", zooms=(5.0, 5.0, 5.0), seed=seed)
    return folder


def test_the_page_shows_each_volume_in_the_table_s_order_and_links_to_what_is_there(scans, tmp_path, tiny_bundle):
    (scans / "broken.nii").write_bytes(b"<b>no</b>")
    out = tmp_path / "out"
    run(scans, out, tiny_bundle)
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    with (out / "scores.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    shown = [text for text in page.texts if text.endswith(".nii")]
    wanted = [row["file"] for row in rows[:3]]
    assert shown == wanted * 2, "once in the table, once above its picture"
    assert {"i", "b"}.isdisjoint(page.tags), "a name is text"
    files = [unquote(link) for link in page.links if not link.startswith("#")]
    assert sorted(files) == sorted(
        f"{n}{s}" for n in NAMES for s in ("_anomaly.nii.gz", "_mask.nii.gz", ".json", ".png")
    )
    assert all((out / file).is_file() for file in files)
    text = "".join(page.texts)
    assert "its name says t2" in text
    assert rows[3]["error"] in text
    assert "1 not computed" in text
    assert "Research use only" in text


def outcome(name, score=None, abnormal=False):
    found = None if score is None else {
        "volume": {"score": score, "p_value": 0.25, "abnormal": abnormal},
        "map": {"above_threshold_ml": 12.5, "highest_z": 7.5},
        "input": {"doubts": ["odd"]},
    }  # fmt: skip
    return Outcome(Job(Path(f"{name}.nii"), name), found, None if found else f"{name}: refused", 0.0, 1.0)


def test_the_highest_score_comes_first_and_failures_last_and_what_is_above_is_marked(tmp_path, tiny_calibration):
    outcomes = [outcome("bad"), outcome("low", 1.0), outcome("high", 6.0, abnormal=True), outcome("middle", 3.0)]
    calibration = replace(tiny_calibration, healthy_scores=np.arange(1, 6, dtype=np.float32))
    bundle = SimpleNamespace(spec=SimpleNamespace(name="tiny", modality="t1"), calibration=calibration)
    write_overview(tmp_path, outcomes, bundle, pictures=True, overwrite=False)
    with (tmp_path / "scores.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [(row["file"], row["score"], row["abnormal"]) for row in rows] == [
        ("high.nii", "6.0", "1"), ("middle.nii", "3.0", "0"), ("low.nii", "1.0", "0"), ("bad.nii", "", "")
    ]  # fmt: skip
    assert (rows[0]["p_value"], rows[0]["above_threshold_ml"], rows[0]["highest_z"]) == ("0.25", "12.5", "7.5")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<h1>3 volumes, 1 above the range of healthy volumes; 1 not computed</h1>" in page
    assert "more than 5.00, by 5 healthy volumes" in page
    high = '<td><a href="#v1">high.nii</a></td><td>6.00</td><td>0.250</td><td>12.5</td><td>7.5</td><td>1</td>'
    assert f'<tr class="abnormal">{high}</tr>' in page
    assert page.count('class="abnormal"') == 1
    assert '<a href="high_anomaly.nii.gz">map</a>, <a href="high_mask.nii.gz">mask</a>' in page


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_a_refused_volume_with_a_name_that_is_no_text_costs_no_table(scans, tmp_path, tiny_bundle):
    for name in (b"M\xfcller.nii", b"two\nlines.nii"):
        path = scans / os.fsdecode(name)
        data, affine = brain_array((5.0, 5.0, 5.0))
        save(path, data + np.random.default_rng(0).uniform(1, 50, data.shape), affine)
    out = tmp_path / "out"
    failed = [outcome.error for outcome in run(scans, out, tiny_bundle) if outcome.error]
    assert len(failed) == 2
    assert all("not skull-stripped" in error and error.isprintable() for error in failed)
    with (out / "scores.csv").open(newline="", encoding="utf-8") as table:
        assert sorted(row["error"] for row in csv.DictReader(table) if row["error"]) == sorted(failed)
    assert "2 not computed" in (out / "index.html").read_text(encoding="utf-8")


def test_without_pictures_there_is_no_page(scans, tmp_path, tiny_bundle):
    run(scans, tmp_path / "out", tiny_bundle, picture=False)
    assert (tmp_path / "out" / "scores.csv").exists()
    assert not (tmp_path / "out" / "index.html").exists()


def test_a_page_of_another_run_does_not_stay(scans, tmp_path, tiny_bundle):
    run(scans, tmp_path / "out", tiny_bundle)
    assert (tmp_path / "out" / "index.html").exists()
    run(scans, tmp_path / "out", tiny_bundle, picture=False, overwrite=True)
    assert not (tmp_path / "out" / "index.html").exists()


def test_a_page_or_table_of_somebody_else_is_never_replaced_and_ours_is_on_request(scans, tmp_path, tiny_bundle):
    out = tmp_path / "out"
    out.mkdir()
    foreign = (("index.html", "<h1>my site</h1>"), ("scores.csv", "file,score,mine\na,1,2\n"), ("scores.csv", ""))
    for name, text in foreign:
        (out / name).write_text(text)
        with pytest.raises(OutputError, match="not written by ssn"):
            run(scans, out, tiny_bundle, overwrite=True)
        assert [path.name for path in out.iterdir()] == [name], "said before anything is computed"
        (out / name).unlink()
    run(scans, out, tiny_bundle)
    with pytest.raises(OutputError, match="exists already"):
        run(scans, out, tiny_bundle)
    run(scans, out, tiny_bundle, overwrite=True)


def test_a_table_and_page_do_not_outlive_the_maps_they_tell_of(scans, tmp_path, tiny_bundle):
    def interrupt(outcome):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    run(scans, out, tiny_bundle)
    assert {"scores.csv", "index.html"} <= {path.name for path in out.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        run(scans, out, tiny_bundle, threshold=0.5, overwrite=True, finished=interrupt)
    assert not {"scores.csv", "index.html"} & {path.name for path in out.iterdir()}


def test_what_is_kept_keeps_its_table(scans, tmp_path, tiny_bundle):
    out = tmp_path / "out"
    run(scans, out, tiny_bundle)
    run(sorted(scans.iterdir())[0], out, tiny_bundle, resume=True, overview=False)
    assert (out / "scores.csv").exists()


def test_a_doubt_an_error_and_a_model_s_name_are_text_whatever_is_in_them(tmp_path, tiny_calibration):
    good, bad = outcome("good", 2.0), outcome("bad")
    good.record["input"]["doubts"] = ["<i>odd</i> & so on"]
    bundle = SimpleNamespace(spec=SimpleNamespace(name="<u>mine</u>", modality="t1"), calibration=tiny_calibration)
    bad = replace(bad, error="<b>x</b>.nii: refused")
    write_overview(tmp_path, [bad, good], bundle, pictures=True, overwrite=False)
    page = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert {"i", "b", "u"}.isdisjoint(page.tags)
    text = "".join(page.texts)
    assert all(said in text for said in ("<i>odd</i> & so on", "<b>x</b>.nii: refused", "Model <u>mine</u>"))
