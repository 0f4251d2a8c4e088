"""A bundle's graphs in half precision, and the same rounding on a CPU.

A strongly typed TensorRT network computes in the types that its ONNX says, and recent TensorRT knows no other kind:
so precision is a matter of the graph. `to_half` makes it, from the ONNX alone.

ONNX Runtime's own converter (`onnxruntime.transformers.float16`) was tried first: it casts each FP32 node's
inputs and outputs on their own, so a tensor between two FP32 nodes still goes through FP16, and a sum of squares
that is kept in FP32 overflows all the same. Here casts stand only where FP16 and FP32 nodes meet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ssn.core.errors import ExportError

LIKELIHOOD = "log_likelihood"
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
# Inputs that ONNX wants in FP32 whatever the data's type is: regions and scales.
_ALWAYS_SINGLE = {"Resize": (1, 2)}
# Of values that are FP16 already these make no new ones, so there is nothing to round.
_EXACT = {
    "Clip", "Concat", "Flatten", "Gather", "Identity", "MaxPool", "Relu", "Reshape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
}  # fmt: skip
_SUMS = ("Pow", "ReduceMean", "ReduceSum", "ReduceSumSquare")


def read_model(data: bytes) -> ModelProto:
    """Parse a graph and give every node a name of its own, because parts are named by their nodes."""
    model = onnx.load_from_string(data)
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)
    return model


def likelihood_sums(model: ModelProto) -> set[str]:
    """Names of the nodes of a flow that sum over features, and of all that follows from them.

    |z|^2 and the log-determinant: sums over C values, of which FP16 would keep three digits. What follows is one
    number a place and costs nothing.
    """
    names: set[str] = set()
    tensors: set[str] = set()
    for node in model.graph.node:
        if node.op_type in _SUMS or tensors & set(node.input):
            names.add(node.name)
            tensors.update(node.output)
    return names


def tensor_types(model: ModelProto) -> dict[str, int]:
    """Element type of every tensor of a graph.

    Raises
    ------
    ExportError
        If ONNX cannot tell one, as with an operator of another domain.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        for name in (*node.input, *node.output):
            if name and not types.get(name):
                raise ExportError(f"the type of {name!r} ({node.op_type} {node.name}) cannot be told; only plain ONNX")
    return types


def _integer_arithmetic(graph: GraphProto, types: dict[str, int]) -> set[str]:
    """Nodes whose floats end as integers: places in the grid, of which FP16 holds 2,048 at most."""
    makers = {name: node for node in graph.node for name in node.output}
    waiting = [
        node
        for node in graph.node
        if node.op_type == "Cast" and types[node.input[0]] == FLOAT and types[node.output[0]] not in (FLOAT, HALF)
    ]
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        found.add(node.name)
        waiting += [
            makers[name]
            for name in node.input
            if name in makers and types[name] == FLOAT and makers[name].name not in found
        ]
    return found


def _constants(graph: GraphProto) -> set[str]:
    """Nodes that see no input: a runtime computes them once when it loads, so FP32 costs nothing."""
    known = {tensor.name for tensor in graph.initializer} | {""}
    found = set()
    for node in graph.node:
        if set(node.input) <= known:
            known.update(node.output)
            found.add(node.name)
    return found


class _Typist:
    """Writes a graph anew, node by node, with every float tensor in the type that its reader wants."""

    def __init__(self, graph: GraphProto, types: dict[str, int]) -> None:
        self.types = types
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.held: dict[str, int] = {}  # activations, by the type they are written in
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}

    def read(self, name: str, wanted: int) -> str:
        """Name of a tensor in the wanted type; a cast is written the first time."""
        if not name or self.types[name] != FLOAT:
            if name in self.weights:
                self.initializers[name] = self.weights[name]
            return name
        alias = f"{name}/{'half' if wanted == HALF else 'single'}"
        if name in self.weights:
            alias = alias if wanted == HALF else name
            if alias not in self.initializers:
                self.initializers[alias] = _halved(self.weights[name], alias) if wanted == HALF else self.weights[name]
            return alias
        if self.held[name] == wanted:
            return name
        if alias not in self.held:
            self.nodes.append(helper.make_node("Cast", [name], [alias], name=f"{alias}/cast", to=wanted))
            self.held[alias] = wanted
        return alias

    def write(self, node: NodeProto, kind: int, outputs: dict[str, int]) -> None:
        """Write a node that computes in `kind`; `outputs` are the graph's and the types that they must have."""
        made = NodeProto()
        made.CopyFrom(node)
        fixed = _ALWAYS_SINGLE.get(node.op_type, ())
        made.input[:] = [self.read(name, FLOAT if i in fixed else kind) for i, name in enumerate(node.input)]
        if node.op_type == "Cast" and kind == HALF:
            for attribute in made.attribute:
                if attribute.name == "to" and attribute.i == FLOAT:
                    attribute.i = HALF
        self.nodes.append(made)
        for index, name in enumerate(node.output):
            if self.types.get(name) != FLOAT:
                continue
            self.held[name] = outputs.get(name, kind)
            if self.held[name] != kind:
                made.output[index] = f"{name}/exact"
                cast = helper.make_node("Cast", [f"{name}/exact"], [name], name=f"{name}/cast", to=self.held[name])
                self.nodes.append(cast)


def _halved(tensor: TensorProto, name: str) -> TensorProto:
    with np.errstate(over="ignore"):  # an overflow becomes infinite, and the parity gate finds it
        return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)


def to_half(model: ModelProto, single: Collection[str] = (), edges: Literal["fp16", "fp32"] = "fp16") -> ModelProto:
    """Convert an FP32 graph to FP16.

    Parameters
    ----------
    single : names of nodes that compute in FP32; all nodes: a graph that is FP16 at its edges only
    edges : type of the inputs and outputs that are FP32; the likelihood stays FP32 always

    Arithmetic of places, and what depends on no input, stays in FP32 always.
    """
    graph, types = model.graph, tensor_types(model)
    stay = {*single, *_integer_arithmetic(graph, types), *_constants(graph)}
    edge = HALF if edges == "fp16" else FLOAT
    outputs = {value.name: FLOAT if value.name == LIKELIHOOD else edge for value in graph.output}
    typist = _Typist(graph, types)
    typist.held = {value.name: edge for value in graph.input}
    for node in graph.node:
        floats = any(types.get(name) == FLOAT for name in node.input)
        half = node.name not in stay and (floats or node.op_type == "Cast")
        typist.write(node, HALF if half else FLOAT, outputs)
    made = _with(model, typist.nodes, typist.initializers.values())
    for value in (*made.graph.input, *made.graph.output):
        if types[value.name] == FLOAT:
            value.type.tensor_type.elem_type = outputs.get(value.name, edge)
    return made


def rounded(half: ModelProto) -> ModelProto:
    """Make an FP32 graph that computes what an FP16 graph computes: a CPU's check of FP16.

    ONNX Runtime's CPU provider has hardly an FP16 kernel: it computes in FP32 and fuses away the casts that it inserts,
    so an FP16 graph never overflows there and looks better than it is. Casts that the graph itself holds are
    honoured: here each FP16 node's result is rounded to FP16 and back. Sums inside a node (convolution, matrix
    product) are FP32, as they are in tensor cores. Inputs and outputs are FP32.
    """
    types = tensor_types(half)
    inputs = {value.name for value in half.graph.input if types[value.name] == HALF}
    nodes: list[NodeProto] = []

    def round_to(source: str, name: str) -> None:
        nodes.append(helper.make_node("Cast", [source], [f"{name}/half"], name=f"{name}/down", to=HALF))
        nodes.append(helper.make_node("Cast", [f"{name}/half"], [name], name=f"{name}/up", to=FLOAT))

    for name in inputs:
        round_to(name, f"{name}/rounded")
    for node in half.graph.node:
        made = NodeProto()
        made.CopyFrom(node)
        made.input[:] = [f"{name}/rounded" if name in inputs else name for name in node.input]
        if node.op_type == "Cast" and types[node.output[0]] == HALF:
            round_to(made.input[0], node.output[0])
            continue
        nodes.append(made)
        if node.op_type in _EXACT:
            continue
        for index, name in enumerate(node.output):
            if types.get(name) == HALF:
                made.output[index] = f"{name}/exact"
                round_to(f"{name}/exact", name)
    weights = [_single(t) if t.data_type == HALF else t for t in half.graph.initializer]
    made_model = _with(half, nodes, weights)
    for value in (*made_model.graph.input, *made_model.graph.output):
        if value.type.tensor_type.elem_type == HALF:
            value.type.tensor_type.elem_type = FLOAT
    return made_model


def _single(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _with(model: ModelProto, nodes: Iterable[NodeProto], initializers: Iterable[TensorProto]) -> ModelProto:
    """Copy a model with other nodes and weights; notes on inner tensors go, because their types changed."""
    made = ModelProto()
    made.CopyFrom(model)
    for part in (made.graph.node, made.graph.initializer, made.graph.value_info):
        del part[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(initializers)
    return made
