"""How far one method is ahead of another, from the rows that the comparison keeps."""

import numpy as np
import pytest

from ssn.benchmarks.accuracy.table import leads


def method(values, healthy=2):
    """Results of a method whose metrics are `values` on as many lesions; healthy volumes have none."""
    metrics = ("auprc", "dice_healthy", "dice")
    lesioned = [{"lesion": "stroke"} | dict.fromkeys(metrics, float(value)) for value in values]
    return {"volumes": [*lesioned, *[{"lesion": ""} | dict.fromkeys(metrics)] * healthy]}


def lead(ours, other):
    """Mean and interval that the table says."""
    row = leads({"ssn": method(ours), "other": method(other)}).splitlines()[2]
    mean, low, high = (float(text.strip("[],")) for text in row.split("|")[2].split())
    return mean, low, high


def test_a_lead_is_of_pairs_so_that_what_is_hard_for_both_does_not_blur_it():
    hard = np.random.default_rng(0).uniform(0, 1, 40)
    mean, low, high = lead(hard + 0.1 + np.tile([-0.01, 0.01], 20), hard)
    assert mean == pytest.approx(0.1, abs=1e-3)
    assert 0.09 < low < mean < high < 0.11


def test_the_interval_is_about_that_of_the_normal_distribution():
    differences = np.random.default_rng(1).normal(0.05, 0.2, 60)
    mean, low, high = lead(differences, np.zeros(60))
    half = 1.96 * differences.std() / np.sqrt(60)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.01)


def test_who_is_behind_is_said_to_be():
    mean, _, high = lead([0.1, 0.2, 0.3], [0.5, 0.6, 0.9])
    assert mean < high < 0


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_lesions_have_no_interval(count):
    table = leads({"ssn": method([0.5, 0.6][:count]), "other": method([0.2, 0.3][:count])})
    assert table.splitlines()[2].split("|")[2].strip() == "+0.300 [-]"


def test_a_bar_in_a_methods_name_begins_no_cell():
    assert "\n| a\\|b |" in leads({"ssn": method([0.5]), "a|b": method([0.2])})
