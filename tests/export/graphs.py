"""Small ONNX graphs, changed bundles and short samples for tests of precision."""

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, load_bundle, write_bundle


def graph(nodes, weights, inputs, outputs):
    """Checked model of FP32 inputs and outputs, name -> shape, and weights, name -> array."""

    def infos(shapes):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    tensors = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "g", infos(inputs), infos(outputs), tensors),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.checker.check_model(made)
    return made


def run(model, **inputs):
    import onnxruntime as ort

    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def with_changed_flow(bundle, folder, change):
    """Write a copy of a bundle whose flow graph was changed by `change(model)`."""
    model = onnx.load_from_string(bundle.read(FLOW_FILE))
    change(model)
    onnx.checker.check_model(model)
    graphs = {ENCODER_FILE: bundle.read(ENCODER_FILE), FLOW_FILE: model.SerializeToString()}
    write_bundle(folder, bundle.spec, graphs, bundle.calibration, {})
    return load_bundle(folder)


def plant_overflow(model):
    """Multiply the features by 10^6 and divide them again: nothing changes in FP32, all is lost in FP16."""
    consumer = next(node for node in model.graph.node if "features" in node.input)
    at = list(model.graph.node).index(consumer)
    consumer.input[:] = ["planted_down" if name == "features" else name for name in consumer.input]
    for name, factor in (("planted.up", 1e6), ("planted.down", 1e-6)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), name))
    up = helper.make_node("Mul", ["features", "planted.up"], ["planted_up"], name="planted_up")
    down = helper.make_node("Mul", ["planted_up", "planted.down"], ["planted_down"], name="planted_down")
    for offset, node in enumerate((up, down)):
        model.graph.node.insert(at + offset, node)


def middle(sample, windows):
    """A sample's middle windows only: as good for a test, and sooner done."""
    stack = sample.stack
    start = (len(stack.occupancy) - windows) // 2
    window = stack.placement.grid.window
    part = replace(
        stack,
        slices=stack.slices[start * window : (start + windows) * window],
        occupancy=stack.occupancy[start : start + windows],
        first=stack.first + start,
    )
    return replace(sample, stack=part)
