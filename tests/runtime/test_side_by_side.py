"""A CPU's two halves of a batch: the same results in the same order, and what is left when it ends early."""

import threading
import time

import numpy as np
import pytest

from ssn.core.bundle import load_bundle
from ssn.runtime.backend import Batch, StageTimes
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.side_by_side import each_in_order, halves, parts_at_once, run_side_by_side

EACH, CELLS = 3, 10


def batch(windows, first=4, seed=0):
    places = np.sort(np.random.default_rng(seed).choice(windows * CELLS, windows * 5, replace=False)) + first * CELLS
    return Batch(np.arange(windows * EACH, dtype=np.float32).reshape(-1, 1, 1, 1), places, first)


def split(whole):
    return halves(whole, EACH, CELLS)


@pytest.mark.parametrize("windows", [2, 3, 8])
def test_halves_are_the_whole(windows):
    whole = batch(windows)
    one, other = split(whole)
    np.testing.assert_array_equal(np.concatenate([one.slices, other.slices]), whole.slices)
    np.testing.assert_array_equal(np.concatenate([one.places, other.places]), whole.places)
    assert one.first == whole.first and other.first == whole.first + len(one.slices) // EACH
    for part in (one, other):
        inside = part.places // CELLS - part.first
        assert inside.min() >= 0 and inside.max() < len(part.slices) // EACH


def test_what_cannot_be_split_stays_whole():
    assert len(split(batch(1))) == 1
    whole = batch(4)
    lower = Batch(whole.slices, whole.places[whole.places < (whole.first + 2) * CELLS], whole.first)
    assert split(lower) == [lower]


def test_threads_that_do_not_divide_compute_one_part_at_a_time():
    assert [parts_at_once(threads) for threads in (1, 2, 3, 16)] == [1, 2, 1, 2]


def test_results_come_in_order_whatever_takes_longest():
    batches = [batch(windows, seed=windows) for windows in (4, 1, 2, 8, 3)]
    pause = iter(np.random.default_rng(1).uniform(0, 0.02, 99))

    def compute(part, times):
        time.sleep(next(pause))
        times.add("encoder", 3.0)
        times.add("flow", 1.0)
        return part.places.astype(np.float32)

    times = StageTimes()
    start = time.perf_counter()
    for whole, result in zip(batches, run_side_by_side(compute, iter(batches), split, times), strict=True):
        np.testing.assert_array_equal(result, whole.places)
    assert sum(times.seconds.values()) <= time.perf_counter() - start, "the clock's time, not the threads'"
    assert times.seconds["encoder"] == pytest.approx(3 * times.seconds["flow"])


def test_both_halves_are_computed_at_the_same_time():
    both = threading.Barrier(2, timeout=10)

    def compute(part, times):
        both.wait()
        return part.places.astype(np.float32)

    assert len(list(run_side_by_side(compute, [batch(2), batch(2)], split, StageTimes()))) == 2


def test_an_error_and_a_caller_that_stops_leave_nothing_running():
    before = threading.active_count()

    def compute(part, times):
        time.sleep(0.01)
        if part.first > 4:
            raise ValueError("this part")
        return part.places.astype(np.float32)

    with pytest.raises(ValueError, match="this part"):
        list(run_side_by_side(compute, [batch(4)] * 3, split, StageTimes()))
    assert threading.active_count() == before
    stopped = run_side_by_side(lambda part, times: part.places, [batch(4)] * 5, split, StageTimes())
    next(stopped)
    stopped.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("folder", ["tiny_bundle", "thick_bundle"])
def test_onnxruntime_says_the_same_on_one_thread_and_on_two(folder, request):
    bundle = load_bundle(request.getfixturevalue(folder))
    spec, rng = bundle.spec, np.random.default_rng(0)
    batches = []
    for first, windows in ((5, 1), (6, 2), (9, 5)):
        slices = rng.random((windows * spec.slices_a_window, 1, spec.grid.plane, spec.grid.plane), np.float32)
        batches.append(Batch(slices, np.arange(0, windows * spec.cells**2, 7) + first * spec.cells**2, first))
    said = []
    for threads in (1, 2):
        times = StageTimes()
        with OnnxRuntimeBackend(bundle, threads) as backend:
            said.append(list(backend.run(batches, times)))
            assert backend.describe()["parts_of_a_batch_at_once"] == threads
        assert set(times.seconds) == {"encoder", "flow"}
    for one, two in zip(*said, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_each_comes_in_order_and_one_is_taken_ahead(threads):
    taken = []
    pause = iter(np.random.default_rng(2).uniform(0, 0.01, 99))

    def given():
        for number in range(9):
            taken.append(number)
            yield (number,)

    def compute(number):
        time.sleep(next(pause))
        return np.float32(number)

    for done, value in enumerate(each_in_order(compute, given(), threads)):
        assert value == done
        assert len(taken) <= done + 1 + threads
    assert taken == list(range(9))


@pytest.mark.parametrize("fails", [False, True], ids=["closed", "failed"])
def test_what_was_taken_ahead_has_ended_when_the_caller_goes_on(fails):
    begun, ended = [], []

    def compute(number):
        begun.append(number)
        if number == 1 and fails:
            raise ValueError("no answer")
        time.sleep(0.05 * number)
        ended.append(number)
        return np.float32(number)

    results = each_in_order(compute, ((number,) for number in range(9)), 2)
    assert next(results) == 0
    if fails:
        with pytest.raises(ValueError, match="no answer"):
            next(results)
    else:
        results.close()
    done = set(begun)
    assert done == set(ended) | ({1} if fails else set())
    time.sleep(0.1)
    assert set(begun) == done and len(done) <= 4
