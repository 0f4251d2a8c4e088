"""3D networks on a GPU in torch, as published and at their best: half precision, compiled, CUDA graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from ssn.benchmarks.baselines import Baseline, build_baseline
from ssn.benchmarks.costs import count_costs
from ssn.benchmarks.gpu.timing import WARM_UP, Report, attempt
from ssn.benchmarks.measure import Spread, seconds_of
from ssn.benchmarks.volumes import STANDARD, Shape

_LAYOUTS = {"channels last": torch.channels_last_3d, "channels first": torch.contiguous_format}
_SECONDS = 1.0  # for the timed runs of one way: the rounds of a heavy network are fewer, but three at least


def measure_networks(
    baselines: Iterable[Baseline], rounds: int, shape: Shape = STANDARD, device: str = "cuda"
) -> Iterator[tuple[str, Report]]:
    """Time each network on one volume; yields its name and what was found.

    A network's own inputs are timed (a window, a step), and `runs` says how often a volume needs that.
    """
    torch.backends.cudnn.benchmark = True
    for baseline in baselines:
        yield baseline.name, attempt(partial(_measure, baseline, rounds, shape, device))


def _measure(baseline: Baseline, rounds: int, shape: Shape, device: str) -> Report:
    seen, runs = baseline.input_shape(shape), baseline.runs(shape)
    flops = count_costs(build_baseline(baseline, seen), torch.zeros(1, 1, *seen)).flops
    result: Report = {
        "group": baseline.group,
        "shape": list(seen),
        "runs": runs,
        "tflop_a_run": round(flops / 1e12, 4),
        "remark": baseline.remark,
        "ways": {},
    }
    for layout, memory_format in _LAYOUTS.items():
        result["ways"][layout] = attempt(partial(_in_layout, baseline, seen, memory_format, rounds, device, False))
    if device == "cuda":
        best = min(_LAYOUTS, key=lambda layout: _best(result["ways"][layout]))
        way = attempt(partial(_in_layout, baseline, seen, _LAYOUTS[best], rounds, device, True))
        result["ways"][f"{best}, compiled"] = way
    best_ms = min(_best(way) for way in result["ways"].values())
    if best_ms < math.inf:
        result["best_ms"], result["volume_ms"] = round(best_ms, 3), round(best_ms * runs, 3)
    return result


def _best(way: Report) -> float:
    """Shortest time of a way; what failed has none, and its reason stays in the way."""
    times = (found.get("median_ms", math.inf) for found in way.values() if isinstance(found, dict))
    return min(times, default=math.inf)


@torch.inference_mode()
def _in_layout(
    baseline: Baseline, shape: Shape, memory_format: torch.memory_format, rounds: int, device: str, compiled: bool
) -> Report:
    volume = torch.rand(1, 1, *shape, device=device)
    network = build_baseline(baseline, shape).to(device)
    run, precision = _prepared(network, volume, memory_format, compiled)
    run()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    result: Report = {"precision": precision, "launched": _timed(run, rounds, device)}
    if device == "cuda":
        result["peak_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        graph = attempt(lambda: _timed(_graphed(run), rounds, device))
        result["graph_problem" if "problem" in graph else "graph"] = graph
    return result


def _prepared(
    network: nn.Module, volume: Tensor, memory_format: torch.memory_format, compiled: bool
) -> tuple[Callable[[], Tensor], str]:
    """Half precision throughout, which is faster, where a network's own code bears it; else as autocast does it."""

    def made(dtype: torch.dtype) -> Callable[[], Tensor]:
        module = network.to(dtype).to(memory_format=memory_format)  # type: ignore[call-overload]
        given = volume.to(dtype).to(memory_format=memory_format)
        module(given)
        return partial(torch.compile(module, dynamic=False) if compiled else module, given)

    try:
        return made(torch.float16), "fp16"
    except RuntimeError:
        run = made(torch.float32)

    def mixed() -> Tensor:
        with torch.autocast(volume.device.type, torch.float16, enabled=volume.is_cuda):
            return run()

    return mixed, "autocast to fp16"


def _graphed(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture what `run` launches; it has run before."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def _timed(run: Callable[[], Tensor], rounds: int, device: str) -> dict[str, float | int]:
    """Device time of `run`: median and spread."""
    seconds: list[float] = []
    for index in range(WARM_UP + rounds):
        seconds.append(_once(run, device))
        if index >= WARM_UP + 3 and sum(seconds[WARM_UP:]) > _SECONDS:
            break
    return Spread.of(seconds[WARM_UP:]).as_json()


def _once(run: Callable[[], Tensor], device: str) -> float:
    if device != "cuda":
        return seconds_of(run)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000
