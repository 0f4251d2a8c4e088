"""Every way to run a bundle that is at hand, compared with ONNX Runtime in FP32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ssn.core.bundle import Bundle
from ssn.core.engine_record import Precision
from ssn.core.engines import find_engines
from ssn.core.errors import DataError, SsnError
from ssn.export.parity import (
    TOLERANCES,
    Answer,
    Drift,
    Method,
    Sample,
    answers,
    answers_on_cpu,
    excesses,
    measure,
    method_of,
)
from ssn.export.precision import read_model, rounded
from ssn.export.variants import GRAPHS, Node, convert
from ssn.runtime.choose import Option, Request, open_option, options
from ssn.runtime.machine import look

REFERENCE = "onnxruntime on cpu"


@dataclass(frozen=True)
class Way:
    """A way to run a bundle: how it answers, or why it can't; with a remark where nothing depends on it."""

    name: str
    precision: Precision
    answer: Callable[[Sequence[Sample]], list[Answer]]
    problem: str | None = None
    remark: str | None = None


@dataclass(frozen=True)
class Row:
    """What was found of a way.

    Attributes
    ----------
    drift : None if it did not run
    beyond : what is beyond the tolerance of its precision, in words
    problem : why it did not run
    remark : why it is not held to the tolerance
    """

    name: str
    precision: Precision
    drift: Drift | None
    beyond: list[str]
    problem: str | None
    remark: str | None = None


def ways(bundle: Bundle, checkpoint: Path | None = None) -> list[Way]:
    """List the ways to run a bundle, other than the reference.

    Raises
    ------
    DataError
        If a checkpoint is given that cannot be loaded, or that the bundle was not made from.
    """
    found = []
    if checkpoint is not None:
        found.append(Way("torch", "fp32", partial(answers, bundle, method=_torch(bundle, checkpoint))))
    kept = _kept_in_fp32(bundle)
    remark = None if kept is not None else "no engine computes it yet; build-engine finds what has to stay in FP32"
    found.append(Way("fp16 graph, rounded on cpu", "fp16", partial(_half_on_cpu, bundle, kept or set()), remark=remark))
    for option in options(bundle, look(), verify=True):
        if option.label == REFERENCE:
            continue
        record = option.entry.record if option.entry else None
        precision: Precision = record.key.precision if record else "fp32"
        found.append(Way(option.label, precision, partial(_with_option, bundle, option), option.problem))
    return found


def _with_option(bundle: Bundle, option: Option, samples: Sequence[Sample]) -> list[Answer]:
    with open_option(bundle, option, Request()) as backend:
        return answers(bundle, samples, method_of(bundle, backend))


def _torch(bundle: Bundle, checkpoint: Path) -> Method:
    from ssn.export.onnx import spec_of
    from ssn.export.torch_reference import torch_method
    from ssn.train.checkpoint import load_checkpoint

    detector = load_checkpoint(checkpoint)
    if spec_of(detector, bundle.spec.name, bundle.spec.modality) != bundle.spec:
        raise DataError(f"{checkpoint}: is of another model than {bundle.folder}; give the one that it was made from")
    return torch_method(detector)


def _kept_in_fp32(bundle: Bundle) -> set[Node] | None:
    """Nodes that FP16 engines built from this bundle's graphs keep in FP32; None where it has none."""
    hashes = {name: bundle.manifest["files"][name]["sha256"] for name in GRAPHS}
    records = [entry.record for entry in find_engines(bundle) if entry.record is not None]
    halves = [record for record in records if record.key.precision == "fp16" and record.onnx == hashes]
    kept = [record.build.get("kept_in_fp32", {}) for record in halves]
    return {Node(graph, name) for one in kept for graph, names in one.items() for name in names} if halves else None


def _half_on_cpu(bundle: Bundle, kept: set[Node], samples: Sequence[Sample]) -> list[Answer]:
    """Run the FP16 graphs, with some nodes in FP32."""
    models = {name: read_model(bundle.read(name)) for name in GRAPHS}
    halves = convert(models, "fp16", kept)
    graphs = {name: rounded(model).SerializeToString() for name, model in halves.items()}
    return answers_on_cpu(bundle.with_graphs(graphs), samples)


def check_bundle(
    bundle: Bundle,
    samples: Sequence[Sample],
    checkpoint: Path | None = None,
    report: Callable[[str, int, int], None] = lambda what, step, steps: None,
) -> list[Row]:
    """Run every way on the same slices; a way that fails is a row of its own, and the others go on.

    Raises
    ------
    DataError
        As `ways`, before anything is run.
    """
    found = ways(bundle, checkpoint)
    report(REFERENCE, 0, len(found) + 1)
    reference = answers_on_cpu(bundle, samples)
    rows = []
    for index, way in enumerate(found):
        report(way.name, index + 1, len(found) + 1)
        problem, drift = way.problem, None
        if problem is None:
            try:
                drift = measure(bundle, samples, reference, way.answer(samples))
            except SsnError as error:
                problem = str(error)
        beyond = [] if drift is None or way.remark else excesses(drift, TOLERANCES[way.precision])
        rows.append(Row(way.name, way.precision, drift, beyond, problem, way.remark))
    return rows
