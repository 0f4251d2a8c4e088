"""An ONNX model's weights: whether they lie outside its own file, and some of them changed; without the onnx package.

A model is a protobuf message: fields of (number, wire type, value). Only the few fields on the way to a tensor
are followed; onnx.proto gives their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_FUNCTION_NODE = 7
_NODE_ATTRIBUTE = 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 22, 23
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_FLOAT = 1  # of a tensor's types

# Message kind -> field number -> kind of the message in it.
_INTO: dict[str, dict[int, str]] = {
    "model": {_MODEL_GRAPH: "graph", _MODEL_FUNCTIONS: "function"},
    "graph": {_GRAPH_NODE: "node", _GRAPH_INITIALIZER: "tensor", _GRAPH_SPARSE: "sparse"},
    "function": {_FUNCTION_NODE: "node"},
    "node": {_NODE_ATTRIBUTE: "attribute"},
    "attribute": {
        _ATTRIBUTE_TENSOR: "tensor",
        _ATTRIBUTE_TENSORS: "tensor",
        _ATTRIBUTE_GRAPH: "graph",
        _ATTRIBUTE_GRAPHS: "graph",
        _ATTRIBUTE_SPARSE: "sparse",
        _ATTRIBUTE_SPARSES: "sparse",
    },
    "sparse": {_SPARSE_VALUES: "tensor", _SPARSE_INDICES: "tensor"},
}
_DEEPEST = 32


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of a message; fixed-width values as their bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} is unknown")
        if at + size > len(data):
            raise ValueError("a field is longer than its message")
        yield key >> 3, data[at : at + size]
        at += size


def has_external_data(model: bytes) -> bool:
    """Say whether any tensor of an ONNX model lies in another file.

    Raises
    ------
    ValueError
        If the bytes are no protobuf message.
    """
    waiting = [("model", memoryview(model), 0)]
    while waiting:
        kind, message, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError("the graphs are nested too deeply")
        try:
            for number, value in _fields(message):
                if kind == "tensor":
                    if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value == 1):
                        return True
                elif number in _INTO[kind] and isinstance(value, memoryview):
                    waiting.append((_INTO[kind][number], value, depth + 1))
        except IndexError as error:
            raise ValueError("it ends in the middle of a number") from error
    return False


def weights(model: bytes) -> dict[str, NDArray[np.float32]]:
    """FP32 weights of an ONNX model's graph by their names, copied.

    Raises
    ------
    ValueError
        If the bytes are no protobuf message, or a tensor's are fewer than its shape says.
    """
    return {name: values.copy() for name, values in _weights(memoryview(bytearray(model))).items()}


def with_weights(model: bytes, changed: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Return the model with other values for some of `weights`, of the same shapes."""
    data = bytearray(model)
    held = _weights(memoryview(data))
    for name, values in changed.items():
        held[name][...] = values
    return bytes(data)


def _weights(model: memoryview) -> dict[str, NDArray[np.float32]]:
    """FP32 weights of the graph, as views of the model."""
    found = {}
    for graph in _messages(model, _MODEL_GRAPH):
        for tensor in _messages(graph, _GRAPH_INITIALIZER):
            shape, kind, name, raw = [], None, "", None
            for number, value in _fields(tensor):
                if number == _TENSOR_DIMS:
                    shape += [value] if isinstance(value, int) else _varints(value)
                elif number == _TENSOR_TYPE:
                    kind = value
                elif number == _TENSOR_NAME and isinstance(value, memoryview):
                    name = bytes(value).decode()
                elif number == _TENSOR_RAW and isinstance(value, memoryview):
                    raw = value
            if kind == _FLOAT and raw is not None:
                found[name] = np.frombuffer(raw, "<f4").reshape(shape)
    return found


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, value in _fields(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def _varints(packed: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        values.append(value)
    return values
