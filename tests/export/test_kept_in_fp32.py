"""What a conversion keeps in FP32, and what must be within which share of the tolerance."""

from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE
from ssn.core.errors import ExportError
from ssn.export import variants
from ssn.export.parity import TOLERANCES, Drift
from ssn.export.precision import read_model, tensor_types
from ssn.export.variants import GRAPHS, Node, convert, make_variant

WHOLE, EXCERPT = [SimpleNamespace(name="whole")], SimpleNamespace(name="excerpt")


@pytest.fixture(scope="module")
def models(bundle):
    return {name: read_model(bundle.read(name)) for name in GRAPHS}


def nodes_of(model, operator):
    return [node for node in model.graph.node if node.op_type == operator]


def test_a_node_of_either_graph_is_kept_and_the_sums_are_always(models):
    convolution, other = nodes_of(models[ENCODER_FILE], "Conv")[:2]
    product = nodes_of(models[FLOW_FILE], "Gemm")[1]
    kept = [Node(ENCODER_FILE, convolution.name), Node(FLOW_FILE, product.name)]
    made = convert(models, "fp16", kept)
    encoder, flow = (tensor_types(made[name]) for name in GRAPHS)
    assert encoder[convolution.output[0]] == flow[product.output[0]] == TensorProto.FLOAT
    assert encoder[other.output[0]] == TensorProto.FLOAT16
    (mean,) = nodes_of(models[FLOW_FILE], "ReduceMean")[-1:]
    assert flow[mean.output[0]] == TensorProto.FLOAT


def test_a_convolution_that_is_kept_has_no_integers(models):
    slices = np.random.default_rng(0).random((3, 192, 192), np.float32)
    late, other = nodes_of(models[ENCODER_FILE], "Conv")[-2:]
    encoder = convert(models, "int8", [Node(ENCODER_FILE, late.name)], [slices])[ENCODER_FILE]
    makers = {name: node.op_type for node in encoder.graph.node for name in node.output}
    weights = {node.name: makers.get(node.input[1]) for node in nodes_of(encoder, "Conv")}
    assert (weights[late.name], weights[other.name]) == (None, "DequantizeLinear")


def test_in_single_precision_the_graphs_are_the_bundle_s_own(bundle, monkeypatch):
    monkeypatch.setattr(variants, "measure", lambda *given: Drift(0, 0, 1, 0, None, None))
    made = make_variant(bundle, "fp32", WHOLE, [])
    assert made.graphs == {name: bundle.read(name) for name in GRAPHS}


def drifting(bundle, monkeypatch, by):
    """Make a variant in FP16 whose maps drift by `by(sample's name, names of kept nodes)`; returns it."""
    asked = {}

    def converted(models, precision, kept, healthy):
        asked["kept"] = {node.name for node in kept}
        return models

    def measured(bundle, samples, reference, given):
        return Drift(0, 0, 1, by(samples[0].name, asked["kept"]), None, None)

    monkeypatch.setattr(variants, "convert", converted)
    monkeypatch.setattr(variants, "rounded", lambda model: model)
    monkeypatch.setattr(variants, "answers_on_cpu", lambda bundle, samples: [])
    monkeypatch.setattr(variants, "excerpt", lambda *given: EXCERPT)
    monkeypatch.setattr(variants, "measure", measured)
    return make_variant(bundle, "fp16", WHOLE, [])


@pytest.mark.parametrize("share", [0.45, 0.55])
def test_a_drift_is_within_half_of_what_its_precision_allows_or_nothing_is_made(bundle, monkeypatch, share):
    drift = share * TOLERANCES["fp16"].map_z
    if share < 0.5:
        assert drifting(bundle, monkeypatch, lambda name, kept: drift).kept == ()
        return
    with pytest.raises(ExportError, match="no fp16 engine is made"):
        drifting(bundle, monkeypatch, lambda name, kept: drift)


def test_what_an_excerpt_does_not_show_is_searched_for_in_everything(bundle, models, monkeypatch):
    shown, hidden = (models[name].graph.node[-3].name for name in GRAPHS)
    made = drifting(bundle, monkeypatch, lambda name, kept: float(not {shown, *(hidden,) * (name == "whole")} <= kept))
    assert made.kept == (Node(ENCODER_FILE, shown), Node(FLOW_FILE, hidden))
    assert made.drift.map_z == 0
