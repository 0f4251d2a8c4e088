"""Time of a volume: slice pipelines against 3D networks, block by block in interleaved rounds, in one engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssn.benchmarks.contenders import (
    SliceModel,
    baseline_costs,
    export_baseline,
    known_accuracy,
    random_volume,
    run_slices,
    slice_costs,
    slice_work,
)
from ssn.benchmarks.measure import (
    FEWEST_ROUNDS,
    Clock,
    Ratio,
    Samples,
    Spread,
    Tell,
    reason_of,
    seconds_of,
    timed_rounds,
    while_it_runs,
)
from ssn.benchmarks.runners import Engine, Run3d, engine_problem, open_graph, open_module, open_slices
from ssn.benchmarks.volumes import Scan, Shape, around_network
from ssn.runtime.memory import MEGABYTE

if TYPE_CHECKING:
    from ssn.benchmarks.baselines import Baseline
    from ssn.benchmarks.costs import Costs

MOST_REPEATS = 3  # of a block that is undecided: looking until it is decided would find what is not there
AT_ONCE = 6  # baselines in memory together: slice pipelines are timed once a block, so fewer blocks are faster
_AROUND = "around"

Row = dict[str, Any]
Run = Callable[[], Mapping[str, float] | object]


@dataclass(frozen=True)
class LatencyPlan:
    """What is measured.

    Attributes
    ----------
    rounds : timed runs that are enough
    folder : scratch and cache of exported networks
    full : time heavy networks on the whole volume instead of a part of it
    decides : how many times faster slice pipelines are asked to be: where a ratio's interval includes it, a block is
        repeated while its time lasts
    """

    scan: Scan
    models: Sequence[SliceModel]
    baselines: Sequence[Baseline]
    engines: Sequence[Engine]
    threads: int
    rounds: int
    folder: Path
    full: bool = False
    decides: float = 3.3


@dataclass
class _Contender:
    """A baseline that was opened: how long its answer for a volume takes is `factor` times its run."""

    baseline: Baseline
    shape: Shape
    factor: float
    costs: Costs
    run: Run3d
    once: float

    def row(self, engine: Engine) -> Row:
        baseline = self.baseline
        return {
            "engine": engine.name,
            "precision": engine.precision,
            "method": baseline.name,
            "group": baseline.group,
            "remark": baseline.remark,
            "timed_shape": list(self.shape),
            "factor": round(self.factor, 4),
            "costs": asdict(self.costs),
            "weights_mb": round(self.costs.parameters * 4 / MEGABYTE, 1),
        }


def measure_latency(plan: LatencyPlan, clock: Clock, tell: Tell = lambda what, step, steps: None) -> Iterator[Row]:
    """Measure every engine; yields a row for each method, with its times or the reason why there are none.

    `clock.left` must be `count_blocks(plan)`.
    """
    work = {model.name: slice_work(plan.scan.path, model.bundle) for model in plan.models}
    costs = {model.name: asdict(slice_costs(model.name, work[model.name])) for model in plan.models}
    for engine in plan.engines:
        problem = engine_problem(engine)
        if problem is not None:
            clock.left -= _blocks(plan)
            yield {"engine": engine.name, "problem": problem}
            continue
        pooled: dict[str, Samples] = {model.name: {} for model in plan.models}
        try:
            with ExitStack() as stack:
                runs = _open_slices(plan, engine, stack)
                warm = sum(seconds_of(run) for run in runs.values())
                for start in range(0, len(plan.baselines), AT_ONCE):
                    block = plan.baselines[start : start + AT_ONCE]
                    yield from _measure_block(plan, engine, block, runs, (warm, clock.share()), pooled, tell)
        except Exception as error:  # of the slice pipelines: this engine compares nothing, and the others go on
            yield {"engine": engine.name, "problem": reason_of(error)}
        for model in plan.models:
            if pooled[model.name]:
                yield _slice_row(engine, model, pooled[model.name], work[model.name], costs[model.name])


def _blocks(plan: LatencyPlan) -> int:
    return -(-len(plan.baselines) // AT_ONCE)


def count_blocks(plan: LatencyPlan) -> int:
    """Comparisons that share the time."""
    return _blocks(plan) * len(plan.engines)


def _open_slices(plan: LatencyPlan, engine: Engine, stack: ExitStack) -> dict[str, Run]:
    """Open the slice pipelines, and what a 3D network has around it from file to file."""
    runs: dict[str, Run] = {}
    for model in plan.models:
        backend = stack.enter_context(open_slices(engine, model.bundle, model.detector, plan.threads))
        runs[model.name] = partial(run_slices, plan.scan.path, model.bundle, backend, plan.folder)
    shapes = (plan.scan.shape, *(one.input_shape(plan.scan.shape) for one in plan.baselines if one.patch is None))
    largest = max(shapes, key=prod)
    runs[_AROUND] = partial(around_network, plan.scan, largest, plan.folder)
    return runs


def _measure_block(
    plan: LatencyPlan,
    engine: Engine,
    block: Sequence[Baseline],
    constant: Mapping[str, Run],
    budget: tuple[float, float],
    pooled: dict[str, Samples],
    tell: Tell,
) -> Iterator[Row]:
    """Warm a block's baselines up, leave out what the time does not allow, and time the rest in turn.

    Parameters
    ----------
    constant : what is timed in every block: slice pipelines, and what is around a 3D network
    budget : seconds that a round of `constant` takes, and that the block may take
    """
    opened: dict[str, _Contender] = {}
    for index, baseline in enumerate(block):
        tell(f"{engine.name}: {baseline.name}", index, len(block))
        try:
            opened[baseline.name] = _open(plan, engine, baseline)
        except Exception as error:  # networks meet engines that lack operators or memory; the others must go on
            yield _failed_row(engine, baseline, reason_of(error))
    for name in _too_slow({name: one.once for name, one in opened.items()}, *budget):
        one = opened.pop(name)
        yield {**one.row(engine), "once_ms": round(one.once * one.factor * 1000, 1)}
    seconds, share = budget
    seconds += sum(one.once for one in opened.values())
    rounds = max(FEWEST_ROUNDS, int(min(share / seconds, plan.rounds)))
    runs: dict[str, Run] = dict(constant)
    failed: dict[str, str] = {}
    for name, one in opened.items():
        runs[name] = while_it_runs(name, partial(one.run, random_volume(one.shape)), failed)
    what = f"{engine.name}: slice pipelines and {len(opened)} 3D networks in turn"
    tell(what, 0, rounds)
    start = time.perf_counter()
    samples = timed_rounds(runs, rounds=rounds, tell=partial(tell, what))
    for repeat in range(1, MOST_REPEATS + 1):
        rows = [_row(one, engine, samples, list(pooled)) for name, one in opened.items() if name not in failed]
        undecided = _undecided(rows, plan.decides)
        spent = time.perf_counter() - start
        if not undecided or repeat == MOST_REPEATS or spent * (repeat + 1) / repeat > share:
            break
        again = partial(tell, f"{engine.name}: undecided, {len(undecided)} of {len(opened)}; more rounds")
        for name, parts in timed_rounds(runs, rounds=rounds, tell=again).items():
            for part, values in parts.items():
                samples[name][part].extend(values)
    for name, known in pooled.items():
        for part, values in samples[name].items():
            known.setdefault(part, []).extend(values)
    yield from rows
    for name, reason in failed.items():
        yield _failed_row(engine, opened[name].baseline, reason)


def _failed_row(engine: Engine, baseline: Baseline, reason: str) -> Row:
    return {"engine": engine.name, "method": baseline.name, "group": baseline.group, "problem": reason}


def _row(one: _Contender, engine: Engine, samples: Mapping[str, Samples], models: Sequence[str]) -> Row:
    """Summarise times of a baseline, and their ratios to those of each slice pipeline in the same rounds."""
    net = np.array(samples[one.baseline.name]["total"]) * one.factor
    own = {"net": net, "file": net + np.array(samples[_AROUND]["total"])}
    row = one.row(engine)
    for part, times in own.items():
        row[part] = Spread.of(list(times)).as_json()
        row[f"{part}_samples_ms"] = _milliseconds(times)
    row["against"] = {
        model: {
            part: Ratio.bootstrap(list(own[part]), samples[model]["net" if part == "net" else "total"]).as_json()
            for part in own
        }
        for model in models
    }
    return row


def _undecided(rows: Sequence[Row], decides: float) -> list[str]:
    """Methods with a ratio whose interval includes the value that decides."""
    return [
        row["method"]
        for row in rows
        if any(
            Ratio(**found).verdict(decides) == "undecided"
            for ratios in row["against"].values()
            for found in ratios.values()
        )
    ]


def timed_shape(plan: LatencyPlan, baseline: Baseline) -> Shape:
    """Shape on which a baseline is timed: heavy ones see a part of the volume, unless the plan is full."""
    # A diffusion's steps are counted one by one: what is too heavy is one run.
    flops = baseline_costs(baseline, plan.scan.shape).flops / baseline.runs(plan.scan.shape)
    return baseline.timed_shape(plan.scan.shape, flops, full=plan.full)


def _open(plan: LatencyPlan, engine: Engine, baseline: Baseline) -> _Contender:
    from ssn.benchmarks.baselines import build_baseline

    costs = baseline_costs(baseline, plan.scan.shape)
    shape = timed_shape(plan, baseline)
    whole = baseline.input_shape(plan.scan.shape)
    factor = baseline.runs(plan.scan.shape) * whole[2] / shape[2]
    if engine.kind == "torch":
        run = open_module(engine, build_baseline(baseline, shape), plan.threads)
    else:
        run = open_graph(engine, export_baseline(baseline, shape, plan.folder), plan.threads)
    once = seconds_of(partial(run, random_volume(shape)))
    return _Contender(baseline, shape, factor, costs, run, once)


def _too_slow(once: Mapping[str, float], others: float, share: float) -> list[str]:
    """Names to leave out, slowest first, until `FEWEST_ROUNDS` of the rest fit into the time.

    What is faster than the `others` of its block, which run anyway, stays: leaving it out would save little.
    """
    kept = sorted(once, key=lambda name: once[name])
    left_out = []
    while kept and once[kept[-1]] > others and FEWEST_ROUNDS * (sum(once[name] for name in kept) + others) > share:
        left_out.append(kept.pop())
    return left_out


def _slice_row(
    engine: Engine, model: SliceModel, samples: Samples, work: dict[str, int], costs: dict[str, float]
) -> Row:
    stages = {part: seconds for part, seconds in samples.items() if part not in ("net", "total")}
    return {
        "engine": engine.name,
        "precision": engine.precision,
        "method": model.name,
        "group": "slice pipeline",
        "remark": f"{work['slices']} slices, {work['places']} map cells with brain",
        "costs": costs,
        "accuracy": known_accuracy(engine, model.bundle),
        "weights_mb": round(sum(entry["bytes"] for entry in model.bundle.manifest["files"].values()) / MEGABYTE, 1),
        "net": Spread.of(samples["net"]).as_json(),
        "file": Spread.of(samples["total"]).as_json(),
        "net_samples_ms": _milliseconds(samples["net"]),
        "file_samples_ms": _milliseconds(samples["total"]),
        "stages_ms": {stage: round(float(np.median(seconds)) * 1000, 2) for stage, seconds in stages.items()},
    }


def _milliseconds(seconds: Sequence[float] | np.ndarray) -> list[float]:
    return [round(float(value) * 1000, 3) for value in seconds]
