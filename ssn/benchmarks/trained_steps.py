"""Steps that need another training: the same pipeline with one thing as published, both with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ssn.benchmarks.measure import Ratio, Spread, timed_rounds
from ssn.benchmarks.runners import choose_engines, open_slices
from ssn.benchmarks.slice_models import ModelName, make_bundle, model_config
from ssn.benchmarks.variants import Way, compute_map

# What the published method has where the compact model has something cheaper.
PUBLISHED: dict[str, dict[str, Any]] = {
    "the encoder sees the mean of three slices, not each": {"pool": "mean"},
    "a flow of 4 blocks, not 8": {"blocks": 8},
    "location code of 96 channels, not 192": {"plane_channels": 128, "depth_channels": 64},
}


def measure_trained_steps(
    scan: Path, folder: Path, *, threads: int, model: ModelName = "compact", rounds: int = 7
) -> Iterator[dict[str, Any]]:
    """Time a volume from its file to the map, before and after each step.

    What a step costs in accuracy needs trained models: `ssn-train ablate` says it.
    """
    config = model_config(model)
    engine = choose_engines(["onnxruntime"])[0]
    way = Way(threads=threads)
    for number, (step, published) in enumerate(PUBLISHED.items()):
        configs = {"before": replace(config, **published), "after": config}
        with ExitStack() as stack:
            runs = {}
            for name, chosen in configs.items():
                _, bundle = make_bundle(model, folder / f"step{number}-{name}", scan, chosen)
                backend = stack.enter_context(open_slices(engine, bundle, None, threads))
                runs[name] = partial(compute_map, way, bundle, backend, scan)
            samples = timed_rounds(runs, rounds=rounds, warm_up=1)
        before, after = (samples[name]["total"] for name in configs)
        yield {
            "step": step,
            "before": Spread.of(before).as_json(),
            "after": Spread.of(after).as_json(),
            "faster": Ratio.bootstrap(before, after).as_json(),
            "accuracy": "trained anew: docs/ablation.md",
        }
