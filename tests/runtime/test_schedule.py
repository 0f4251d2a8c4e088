import random
from dataclasses import replace
from itertools import pairwise

import pytest

from ssn.runtime.device_pipeline import PLACE_PARTS, batch_shapes
from ssn.runtime.schedule import READS, WRITES, Schedule, bucket


class HazardError(AssertionError):
    pass


def all_steps(schedule, batches):
    for batch in range(batches):
        yield from schedule.begin(batch)
    yield from schedule.finish(batches)


def simulate(steps, seed):
    """Carry steps out in a random order that lanes and waits allow; raise where a buffer is used wrongly.

    Every step takes a random time. The host takes its own steps at once and blocks on what they wait for;
    device steps are queued in its order. Returns (step, begin, end) of all.
    """
    pick = random.Random(seed)
    ends, lane_free, host_now, ran = {}, {}, 0.0, []
    for step in steps:
        begin = max(host_now, ends[step.waits, step.batch] if step.waits else 0.0)
        if step.lane != "host":
            begin = max(begin, lane_free.get(step.lane, 0.0))
        end = begin + pick.choice((0.01, 1.0, 10.0)) * pick.random()
        if step.lane == "host":
            host_now = end
        else:
            lane_free[step.lane] = end
        ends[step.stage, step.batch] = end
        ran.append((step, begin, end))
    check_buffers(ran)
    return ran


def check_buffers(ran):
    """Nothing reads a buffer while it is written, before its batch is in it, or after another's is."""
    uses = {}
    for step, begin, end in ran:
        for buffer in WRITES[step.stage]:
            uses.setdefault((buffer, step.slot), []).append((begin, end, "write", step))
        for buffer in READS[step.stage]:
            uses.setdefault((buffer, step.slot), []).append((begin, end, "read", step))
    for buffer, list_of_uses in uses.items():
        writes = [use for use in list_of_uses if use[2] == "write"]
        for begin, end, kind, step in list_of_uses:
            for other_begin, other_end, _, other in writes:
                if other is not step and begin < other_end and other_begin < end:
                    raise HazardError(f"{buffer}: {step} and {other} at once")
            if kind == "read":
                last = max((use for use in writes if use[1] <= begin), key=lambda use: use[1], default=None)
                if last is None or last[3].batch != step.batch:
                    raise HazardError(f"{buffer}: {step} reads what {last} wrote")


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("batches", range(1, 9))
def test_no_buffer_is_overwritten_before_it_was_read(slots, batches):
    steps = list(all_steps(Schedule(slots), batches))
    for seed in range(60):
        simulate(steps, seed)
    assert [step.batch for step in steps if step.stage == "read"] == list(range(batches)), "every result, in order"


@pytest.mark.parametrize("stage", ["encoder", "copy_out", "read"])
def test_the_simulator_notices_a_wait_that_is_left_out(stage):
    steps = [replace(s, waits=None) if s.stage == stage else s for s in all_steps(Schedule(2), 8)]
    with pytest.raises(HazardError):
        for seed in range(200):
            simulate(steps, seed)


def test_the_simulator_notices_a_slot_that_is_filled_before_its_results_were_read():
    steps = sorted(all_steps(Schedule(2), 8), key=lambda step: step.stage == "read")
    with pytest.raises(HazardError):
        for seed in range(200):
            simulate(steps, seed)


def test_without_overlap_one_step_follows_the_other():
    ran = simulate(list(all_steps(Schedule(1, overlap=False), 5)), seed=1)
    for (_, _, end), (_, begin, _) in pairwise(ran):
        assert begin >= end
    assert [step.stage for step, _, _ in ran] == ["fill", "copy_in", "encoder", "flow", "copy_out", "read"] * 5


def test_with_overlap_a_batch_is_copied_in_while_the_one_before_it_computes():
    ran = {(s.stage, s.batch): (begin, end) for s, begin, end in simulate(list(all_steps(Schedule(2), 6)), seed=3)}
    overlapping = [k for k in range(5) if ran["copy_in", k + 1][0] < ran["flow", k][1]]
    assert overlapping, "no copy began before the batch before it had ended"
    sequential = simulate(list(all_steps(Schedule(1), 6)), seed=3)
    assert max(end for _, _, end in sequential) > max(end for _, end in ran.values())


def test_impossible_schedules_are_refused():
    for slots, overlap in ((0, True), (2, False)):
        with pytest.raises(ValueError, match="slots"):
            Schedule(slots, overlap)


def test_sizes_are_few_and_hold_what_is_asked():
    for largest in (1, 3, 8, 2304, 7 * 2304):
        sizes = {bucket(count, largest, PLACE_PARTS) for count in range(1, largest + 1)}
        assert len(sizes) <= PLACE_PARTS
        assert max(sizes) == largest
        assert all(bucket(count, largest, PLACE_PARTS) >= count for count in range(1, largest + 1))
    with pytest.raises(ValueError, match="not in 1"):
        bucket(9, 8, 4)


@pytest.mark.parametrize("windows", [1, 2, 5, 8, 32])
def test_every_batch_has_one_of_the_listed_shapes(windows):
    cells = 6
    shapes = batch_shapes(windows, cells)
    assert len(shapes) <= 8
    for count in range(1, windows + 1):
        size = bucket(count, windows, 2)
        for places in range(1, count * cells**2 + 1):
            assert (size, bucket(places, size * cells**2, PLACE_PARTS)) in shapes
