"""Half precision: where it is rounded, where it is not, and who is to blame when maps drift."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from brains import brain_file
from graphs import graph, middle, plant_overflow, run, with_changed_flow
from onnx import TensorProto, helper

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE
from ssn.core.errors import ExportError
from ssn.export.culprits import find_culprits, stages
from ssn.export.parity import TOLERANCES, answers_on_cpu, excesses, measure, prepare
from ssn.export.precision import likelihood_sums, read_model, rounded, tensor_types, to_half
from ssn.export.variants import GRAPHS, Node, in_half, make_variant


@pytest.fixture(scope="module")
def sample(bundle, tmp_path_factory):
    whole = prepare(bundle, brain_file(tmp_path_factory.mktemp("scan") / "scan.nii.gz", zooms=(4.0, 4.0, 6.0)))
    return middle(whole, 6)


def chain(*factors):
    """x -> Mul -> Mul ... -> y, nodes named m0, m1, ..."""
    names = ["x", *(f"t{i}" for i in range(len(factors) - 1)), "y"]
    nodes = [helper.make_node("Mul", [names[i], f"w{i}"], [names[i + 1]], name=f"m{i}") for i in range(len(factors))]
    return graph(nodes, {f"w{i}": f for i, f in enumerate(factors)}, {"x": [3]}, {"y": [3]})


X = np.array([1.0, 60.0, 1000.0], np.float32)


def test_half_precision_overflows_on_the_cpu_as_it_would_on_a_gpu():
    found = run(rounded(to_half(chain(1000, 0.001))), x=X)
    np.testing.assert_array_equal(np.isinf(found), [False, False, True])
    assert found[1] == np.float16(np.float16(60_000) * np.float16(0.001))


def test_between_two_nodes_in_single_precision_nothing_is_rounded():
    half = to_half(chain(1000, 0.001), {"m0", "m1"})
    np.testing.assert_allclose(run(rounded(half), x=X), X, rtol=1e-3)
    assert [node.op_type for node in half.graph.node] == ["Cast", "Mul", "Mul", "Cast"]


def test_a_graph_whose_nodes_all_stay_single_is_half_at_its_edges_only():
    half = to_half(chain(3, 5), {"m0", "m1"})
    types = tensor_types(half)
    assert (types["x"], types["y"], types["t0"]) == (TensorProto.FLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT)


def test_a_weight_that_both_precisions_use_is_kept_in_both():
    nodes = [helper.make_node("Mul", ["x", "w"], ["t"], name="a"), helper.make_node("Add", ["t", "w"], ["y"], name="b")]
    model = graph(nodes, {"w": 1.0001}, {"x": [3]}, {"y": [3]})
    half = to_half(model, {"b"})
    assert sorted(t.data_type for t in half.graph.initializer) == [TensorProto.FLOAT, TensorProto.FLOAT16]


def test_what_two_nodes_read_in_the_other_precision_is_cast_once():
    nodes = [helper.make_node("Mul", ["x", "w"], ["t"], name="half")]
    nodes += [
        helper.make_node("Mul", ["t", "t"], ["u"], name="a"),
        helper.make_node("Add", ["t", "u"], ["y"], name="b"),
    ]
    half = to_half(graph(nodes, {"w": 3}, {"x": [3]}, {"y": [3]}), {"a", "b"}, "fp32")
    np.testing.assert_array_equal(run(half, x=np.float32([1, 2, 50])), [12, 42, 22650])
    assert [node.op_type for node in half.graph.node] == ["Cast", "Mul", "Cast", "Mul", "Add"]


def test_what_depends_on_no_input_is_computed_in_single_precision():
    names = ["w0", "t0", "t1"]
    nodes = [helper.make_node("Mul", [names[i], f"w{i + 1}"], [f"t{i}"], name=f"c{i}") for i in range(2)]
    nodes.append(helper.make_node("Mul", ["x", "t1"], ["y"], name="m"))
    nodes[1].input[0] = "t0"
    half = rounded(to_half(graph(nodes, {"w0": 1000, "w1": 1000, "w2": 1e-6}, {"x": [3]}, {"y": [3]})))
    np.testing.assert_allclose(run(half, x=X), X, rtol=1e-3)


def test_an_integer_that_becomes_a_float_becomes_a_half():
    nodes = [
        helper.make_node("Cast", ["x"], ["n"], name="whole", to=TensorProto.INT64),
        helper.make_node("Cast", ["n"], ["f"], name="back", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"], name="m"),
    ]
    half = to_half(graph(nodes, {}, {"x": [3]}, {"y": [3]}), edges="fp32")
    assert tensor_types(half)["f"] == TensorProto.FLOAT16
    np.testing.assert_array_equal(run(half, x=np.float32([1.5, 3, 60])), [1.5, 9, 3600])


def test_the_scales_of_a_resize_stay_in_single_precision():
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], name="r", mode="nearest")
    model = graph([node], {"scales": [1, 1, 2, 3]}, {"x": [1, 1, 1, 2]}, {"y": [1, 1, 2, 6]})
    found = run(to_half(model, edges="fp32"), x=np.float32([[[[1, 2]]]]))
    np.testing.assert_array_equal(found, [[[[1, 1, 1, 2, 2, 2]] * 2]])


def test_inputs_are_rounded_as_they_come_in():
    model = graph([helper.make_node("Add", ["x", "w"], ["y"], name="a")], {"w": -2048}, {"x": [2]}, {"y": [2]})
    np.testing.assert_array_equal(run(rounded(to_half(model, {"a"})), x=np.float32([2049, 2050])), [0, 2])


@pytest.mark.parametrize("operator", ["Add", "Exp", "Tanh", "MatMul", "Gemm", "Conv"])
def test_the_results_of_what_computes_are_rounded(operator):
    shape = [1, 1, 2, 2] if operator == "Conv" else [2, 2]
    weights = {} if operator in ("Exp", "Tanh") else {"w": np.reshape([0.1, 0.3, 0.7, 0.9], shape)}
    out = [1, 1, 1, 1] if operator == "Conv" else shape
    model = graph([helper.make_node(operator, ["x", *weights], ["y"], name="n")], weights, {"x": shape}, {"y": out})
    values = np.float32([0.25, 0.5, 0.75, 1.25]).reshape(shape)
    found = run(rounded(to_half(model)), x=values)
    np.testing.assert_array_equal(found, found.astype(np.float16))
    np.testing.assert_allclose(found, run(model, x=values), rtol=2e-3)


def test_nodes_of_one_name_or_none_are_told_apart():
    model = chain(1, 2, 3)
    for node, name in zip(model.graph.node, ("m", "m", ""), strict=True):
        node.name = name
    assert len({node.name for node in read_model(model.SerializeToString()).graph.node} - {""}) == 3


@pytest.mark.parametrize("operator", ["Pow", "ReduceMean", "ReduceSum", "ReduceSumSquare"])
def test_a_sum_over_features_and_all_that_follows_stay_in_single_precision(operator):
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["t"], name="before"),
        helper.make_node(operator, ["t", "w"] if operator == "Pow" else ["t"], ["s"], name="sum"),
        helper.make_node("Mul", ["s", "w"], ["y"], name="after"),
        helper.make_node("Mul", ["t", "w"], ["z"], name="aside"),
    ]
    assert likelihood_sums(graph(nodes, {"w": 2}, {"x": [3]}, {"y": [3], "z": [3]})) == {"sum", "after"}


def test_a_bundle_in_half_precision_runs_in_onnxruntime_as_it_is(bundle, sample):
    half = in_half(bundle)
    for name in GRAPHS:
        model = onnx.load_from_string(half.read(name))
        types = {tensor.type.tensor_type.elem_type for tensor in (*model.graph.input, *model.graph.output)}
        assert TensorProto.FLOAT16 not in types
        matrices = [weight for weight in model.graph.initializer if len(weight.dims) >= 2 and weight.name != "plane"]
        assert sum(weight.data_type == TensorProto.FLOAT16 for weight in matrices) > len(matrices) / 2
    drift = measure(bundle, [sample], answers_on_cpu(bundle, [sample]), answers_on_cpu(half, [sample]))
    assert excesses(drift, TOLERANCES["fp16"]) == []
    assert drift.log_likelihood > 0


def test_places_are_not_rounded_however_large_the_grid(bundle, sample):
    flow = read_model(bundle.read(FLOW_FILE))
    half = rounded(to_half(flow, likelihood_sums(flow)))
    spec = bundle.spec
    features = np.random.default_rng(0).normal(size=(2, spec.features, spec.cells, spec.cells)).astype(np.float32)
    first = np.array([spec.grid.windows - 2], np.int64)
    places = np.arange(2 * spec.cells**2) + first * spec.cells**2
    assert places[-1] > 65_504, "beyond what FP16 can hold"
    inputs = {"features": features, "places": places, "first": first}
    np.testing.assert_allclose(run(half, **inputs), run(flow, **inputs), atol=TOLERANCES["fp16"].log_likelihood)


def test_the_half_graphs_take_and_give_half_precision_and_a_likelihood_in_single(bundle):
    encoder, flow = (read_model(bundle.read(name)) for name in GRAPHS)
    types = tensor_types(to_half(encoder)) | tensor_types(to_half(flow, likelihood_sums(flow)))
    assert {name: types[name] for name in ("slices", "features", "places", "log_likelihood")} == {
        "slices": TensorProto.FLOAT16,
        "features": TensorProto.FLOAT16,
        "places": TensorProto.INT64,
        "log_likelihood": TensorProto.FLOAT,
    }


def test_sums_over_features_stay_in_single_precision(bundle):
    flow = read_model(bundle.read(FLOW_FILE))
    half = to_half(flow, likelihood_sums(flow))
    types = tensor_types(half)
    sums = [node for node in half.graph.node if node.op_type in ("ReduceMean", "Pow")]
    assert sums
    assert {types[node.output[0]] for node in sums} == {TensorProto.FLOAT}
    assert {types[node.output[0]] for node in half.graph.node if node.op_type == "Gemm"} == {TensorProto.FLOAT16}


def test_half_precision_is_within_its_tolerance_and_really_rounds(bundle, sample):
    variant = make_variant(bundle, "fp16", [sample], answers_on_cpu(bundle, [sample]))
    assert excesses(variant.drift, TOLERANCES["fp16"]) == []
    assert variant.kept == ()
    assert variant.drift.log_likelihood > 1e-4, "a drift of nothing would mean that nothing was rounded"


def test_the_search_finds_a_planted_culprit_and_keeps_only_that_in_single_precision(bundle, sample, tmp_path):
    planted = with_changed_flow(bundle, tmp_path / "planted", plant_overflow)
    expected = answers_on_cpu(bundle, [sample])
    np.testing.assert_allclose(
        answers_on_cpu(planted, [sample])[0].log_likelihood, expected[0].log_likelihood, atol=1e-4
    )
    tried = []
    variant = make_variant(planted, "fp16", [sample], expected, tried=tried.append)
    assert variant.kept == (Node(FLOW_FILE, "planted_down"), Node(FLOW_FILE, "planted_up"))
    assert excesses(variant.drift, TOLERANCES["fp16"]) == []
    assert tried[-1] < 40, "bisection, not a trial of each node"


def test_drift_that_nothing_mends_is_refused(bundle, sample):
    wrong = [replace(a, log_likelihood=a.log_likelihood + 1) for a in answers_on_cpu(bundle, [sample])]
    with pytest.raises(ExportError, match=r"whatever is kept in FP32.*--precision fp32"):
        make_variant(bundle, "fp16", [sample], wrong)


@pytest.mark.parametrize("culprits", [set(), {0}, {19}, {7}, {3, 4}, {0, 19}, {2, 9, 16}])
def test_bisection_finds_every_culprit_and_no_bystander(culprits):
    tried = []

    def passes(spared):
        tried.append(spared)
        return culprits <= set(spared)

    assert set(find_culprits(range(20), passes)) == culprits
    assert len(tried) <= 8 * len(culprits) + 3


def test_stages_follow_the_names_of_the_weights(bundle):
    names = stages(read_model(bundle.read(FLOW_FILE)))
    flat = [name for stage in names for name in stage]
    assert flat == [node.name for node in read_model(bundle.read(FLOW_FILE)).graph.node]
    gemms = [{name for name in stage if name.startswith("node_linear")} for stage in names]
    assert sum(bool(found) for found in gemms) >= bundle.manifest["architecture"]["blocks"]


def test_int8_convolutions_stay_within_their_tolerance(bundle, sample):
    variant = make_variant(bundle, "int8", [sample], answers_on_cpu(bundle, [sample]), healthy=[sample.stack.slices])
    encoder = onnx.load_from_string(variant.graphs[ENCODER_FILE])
    kept = {node.name for node in variant.kept}
    quantised = [node for node in encoder.graph.node if node.op_type == "Conv" and node.name not in kept]
    makers = {name: node.op_type for node in encoder.graph.node for name in node.output}
    assert quantised
    assert {makers[name] for node in quantised for name in node.input[:2]} == {"DequantizeLinear"}
    assert excesses(variant.drift, TOLERANCES["int8"]) == []


def test_an_operator_of_another_domain_is_refused():
    made = chain(2)
    made.graph.node[0].op_type, made.graph.node[0].domain = "Mystery", "com.example"
    made.opset_import.append(helper.make_opsetid("com.example", 1))
    made.graph.node.append(helper.make_node("Relu", ["y"], ["z"], name="r"))
    made.graph.output[0].name = "z"
    with pytest.raises(ExportError, match="Mystery"):
        to_half(made)
