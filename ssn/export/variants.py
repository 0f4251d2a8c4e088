"""A bundle's graphs in another precision, and the gate that they must pass before an engine is made of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, Bundle
from ssn.core.engine_record import Precision
from ssn.core.errors import ExportError
from ssn.export.culprits import find_culprits, stages
from ssn.export.parity import (
    TOLERANCES,
    Answer,
    Drift,
    Sample,
    answers_on_cpu,
    excerpt,
    excesses,
    measure,
    tightened,
)
from ssn.export.precision import likelihood_sums, read_model, rounded, to_half

GRAPHS = (ENCODER_FILE, FLOW_FILE)
_SEARCHED_WINDOWS = 6  # of a volume's some fifty: a search asks for them dozens of times
# Of the tolerance: of volumes that are measured, because others will drift further; and of a search's excerpt of them.
_BUILD_SHARE, _EXCERPT_SHARE = 0.5, 0.4


class Node(NamedTuple):
    """A node of one of the two graphs."""

    graph: str
    name: str


@dataclass(frozen=True)
class Variant:
    """A bundle's graphs in one precision.

    Attributes
    ----------
    graphs : what the engines are built from
    kept : nodes that stay in FP32 because the maps would drift otherwise
    drift : from the FP32 graphs, measured on the CPU with the same rounding
    """

    precision: Precision
    graphs: Mapping[str, bytes]
    kept: tuple[Node, ...]
    drift: Drift


def in_half(bundle: Bundle, edges: Literal["fp16", "fp32"] = "fp32") -> Bundle:
    """Make a bundle compute in FP16; with edges in FP32, too, ONNX Runtime runs it as it is."""
    made = convert({name: read_model(bundle.read(name)) for name in GRAPHS}, "fp16", edges=edges)
    return bundle.with_graphs({name: model.SerializeToString() for name, model in made.items()})


def convert(
    models: Mapping[str, ModelProto],
    precision: Literal["fp16", "int8"],
    kept: Collection[Node] = (),
    healthy: Sequence[NDArray[np.float32]] = (),
    edges: Literal["fp16", "fp32"] = "fp16",
) -> dict[str, ModelProto]:
    """Convert both FP32 graphs to a lower precision.

    Parameters
    ----------
    kept : nodes that stay in FP32
    healthy : slices (D, H, W) of healthy volumes, for the ranges of INT8
    edges : type of slices and features as they come and go
    """
    single = {graph: {node.name for node in kept if node.graph == graph} for graph in GRAPHS}
    encoder, flow = models[ENCODER_FILE], models[FLOW_FILE]
    if precision == "int8":
        from ssn.export.int8 import quantise

        quantised = read_model(quantise(encoder, healthy, single[ENCODER_FILE]).SerializeToString())
        # FP16 at its edges only: between the pairs it is integers already.
        encoder = to_half(quantised, {node.name for node in quantised.graph.node}, edges)
    else:
        encoder = to_half(encoder, single[ENCODER_FILE], edges)
    return {ENCODER_FILE: encoder, FLOW_FILE: to_half(flow, likelihood_sums(flow) | single[FLOW_FILE], edges)}


def make_variant(
    bundle: Bundle,
    precision: Precision,
    samples: Sequence[Sample],
    reference: Sequence[Answer],
    *,
    healthy: Sequence[NDArray[np.float32]] = (),
    tried: Callable[[int], None] = lambda count: None,
) -> Variant:
    """Convert a bundle's graphs and keep the maps within the precision's tolerance.

    Where they drift further, the nodes to blame are found by bisection, over the stages of both graphs first and the
    nodes in them then, and stay in FP32.

    Parameters
    ----------
    reference : what the FP32 graphs say of the samples
    tried : called with the number of conversions that were measured

    Raises
    ------
    ExportError
        If nothing that is kept in FP32 helps.
    """
    if precision == "fp32":  # the reference's own graphs
        same = {name: bundle.read(name) for name in GRAPHS}
        return Variant(precision, same, (), measure(bundle, samples, reference, reference))
    trial = _Trial(bundle, precision, {name: read_model(bundle.read(name)) for name in GRAPHS}, healthy, tried)
    variant, given = trial.run((), samples, reference)
    if trial.within(variant):
        return variant
    parts = [[Node(graph, name) for name in stage] for graph in GRAPHS for stage in stages(trial.models[graph])]
    spared, _ = trial.run([node for part in parts for node in part], samples, reference)
    if not trial.within(spared):
        beyond = "; ".join(excesses(variant.drift, TOLERANCES[precision]))
        raise ExportError(
            f"{bundle.folder}: no {precision} engine is made, because its maps would drift whatever is kept in FP32 "
            f"({beyond}); build with --precision fp32"
        )
    part = [excerpt(samples, reference, given, _SEARCHED_WINDOWS)]
    part_reference = answers_on_cpu(bundle, part)
    # What an excerpt shows isn't all: it is held to less, and where that won't do, everything is searched.
    for share, on, expected in ((_EXCERPT_SHARE, part, part_reference), (_BUILD_SHARE, samples, reference)):
        kept = _search(trial, parts, on, expected, share)
        variant, _ = trial.run(kept, samples, reference)
        if trial.within(variant):
            return variant
    return spared


@dataclass
class _Trial:
    """Conversions of one bundle to one precision, counted."""

    bundle: Bundle
    precision: Literal["fp16", "int8"]
    models: Mapping[str, ModelProto]
    healthy: Sequence[NDArray[np.float32]]
    tried: Callable[[int], None]
    count: int = 0

    def run(
        self, kept: Collection[Node], samples: Sequence[Sample], reference: Sequence[Answer]
    ) -> tuple[Variant, list[Answer]]:
        """Convert with some nodes kept in FP32, and measure."""
        self.count += 1
        self.tried(self.count)
        made = convert(self.models, self.precision, kept, self.healthy)
        graphs = {name: model.SerializeToString() for name, model in made.items()}
        on_cpu = {name: rounded(model).SerializeToString() for name, model in made.items()}
        given = answers_on_cpu(self.bundle.with_graphs(on_cpu), samples)
        drift = measure(self.bundle, samples, reference, given)
        return Variant(self.precision, graphs, tuple(sorted(kept)), drift), given

    def within(self, variant: Variant, share: float = _BUILD_SHARE) -> bool:
        return not excesses(variant.drift, tightened(TOLERANCES[self.precision], share))


def _search(
    trial: _Trial,
    parts: Sequence[Sequence[Node]],
    samples: Sequence[Sample],
    reference: Sequence[Answer],
    share: float,
) -> list[Node]:
    """Nodes to blame for drifting beyond a share of the tolerance on some samples."""

    def passes(spared: Sequence[Sequence[Node]]) -> bool:
        kept = [node for part in spared for node in part]
        return trial.within(trial.run(kept, samples, reference)[0], share)

    suspects = [[node] for part in find_culprits(parts, passes) for node in part]
    return [node for (node,) in find_culprits(suspects, passes)]
