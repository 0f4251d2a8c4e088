"""What the compact model's narrow flow saves: the same pipeline with the published flow, both with random weights."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from ssn.benchmarks.measure import Ratio, Spread, timed_rounds
from ssn.benchmarks.runners import choose_engines, open_slices
from ssn.benchmarks.slice_models import make_bundle
from ssn.benchmarks.variants import Way, compute_map


def measure_flow_width(scan: Path, folder: Path, *, threads: int, rounds: int = 7) -> dict[str, Any]:
    """Time a volume from its file to the map with the published flow's size and with the compact one's.

    What it costs in accuracy needs trained models: `ssn-train ablate --question flow` says it.
    """
    from dataclasses import replace

    from ssn.train.network import ModelConfig

    compact = ModelConfig.compact()
    published = replace(compact, blocks=8, plane_channels=128, depth_channels=64)
    configs = {"before": published, "after": compact}
    engine = choose_engines(["onnxruntime"])[0]
    way = Way(threads=threads)
    with ExitStack() as stack:
        runs = {}
        for name, config in configs.items():
            _, bundle = make_bundle("compact", folder / f"flow-{name}", scan, config)
            backend = stack.enter_context(open_slices(engine, bundle, None, threads))
            runs[name] = partial(compute_map, way, bundle, backend, scan)
        samples = timed_rounds(runs, rounds=rounds, warm_up=1)
    before, after = (samples[name]["total"] for name in configs)
    return {
        "step": "a flow of 4 blocks with half the code, not 8",
        "before": Spread.of(before).as_json(),
        "after": Spread.of(after).as_json(),
        "faster": Ratio.bootstrap(before, after).as_json(),
        "accuracy": "trained anew: docs/ablation.md",
    }
