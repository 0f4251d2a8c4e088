"""Steps that need another training: the same pipeline before and after, both with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ssn.benchmarks.measure import step_times, timed_rounds
from ssn.benchmarks.runners import choose_engines, open_slices
from ssn.benchmarks.slice_models import make_bundle, model_config
from ssn.benchmarks.steps.ways import Way, compute_map


@dataclass(frozen=True)
class TrainedStep:
    """What changes from one configuration to another; a model must be trained for each.

    Attributes
    ----------
    before, after : fields of the compact model's configuration that are otherwise
    question, arms : of `ssn-train ablate`, where its accuracy is: before and after
    """

    name: str
    before: dict[str, Any]
    after: dict[str, Any]
    question: str
    arms: tuple[str, str]


STEPS = (
    # From the published method to the compact model.
    TrainedStep(
        "the encoder sees the mean of three slices, not each", {"pool": "mean"}, {}, "slices", ("mean", "slab")
    ),
    TrainedStep("a flow of 4 blocks, not 8", {"blocks": 8}, {}, "flow", ("8 blocks", "4 blocks")),
    TrainedStep(
        "location code of 96 channels, not 192",
        {"plane_channels": 128, "depth_channels": 64},
        {},
        "width",
        ("code twice as long", "full"),
    ),
    # What it does not do.
    TrainedStep("flow on 88 principal components, not 176", {}, {"components": 88}, "width", ("full", "88 components")),
    TrainedStep("flow with hidden layers of 96, not 184", {}, {"hidden": 96}, "width", ("full", "hidden layers of 96")),
)


def measure_trained_steps(scan: Path, folder: Path, *, threads: int) -> Iterator[dict[str, Any]]:
    """Time a volume from its file to the compact model's map, before and after each step.

    What a step costs in accuracy needs trained models: `ssn-train ablate` says it, and a row names its arms there.
    """
    config = model_config("compact")
    engine = choose_engines(["onnxruntime"])[0]
    way = Way(threads=threads)
    for number, step in enumerate(STEPS):
        configs = {"before": replace(config, **step.before), "after": replace(config, **step.after)}
        with ExitStack() as stack:
            runs = {}
            for name, chosen in configs.items():
                _, bundle = make_bundle("compact", folder / f"step{number}-{name}", scan, chosen)
                backend = stack.enter_context(open_slices(engine, bundle, None, threads))
                runs[name] = partial(compute_map, way, bundle, backend, scan)
            samples = timed_rounds(runs, rounds=7, warm_up=1)
        yield {
            "step": step.name,
            **step_times(samples),
            "accuracy": "trained anew: docs/ablation.md",
            "ablation": {"question": step.question, "before": step.arms[0], "after": step.arms[1]},
        }
