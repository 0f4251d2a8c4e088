import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE
from ssn.core.onnx_data import weights, with_weights


def as_onnx_reads_them(model):
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(model).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }


@pytest.mark.parametrize("name", [ENCODER_FILE, FLOW_FILE])
def test_weights_are_those_that_the_onnx_package_reads(bundle, name):
    model = bundle.read(name)
    expected, found = as_onnx_reads_them(model), weights(model)
    assert set(found) == set(expected)
    assert len(found) > 5
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values)
        assert found[key].shape == values.shape


def test_what_is_changed_is_changed_and_nothing_else(bundle):
    model = bundle.read(FLOW_FILE)
    before = weights(model)
    wanted = {"whitening.bias": np.arange(len(before["whitening.bias"]), dtype=np.float32)}
    changed = with_weights(model, wanted)
    onnx.checker.check_model(onnx.load_from_string(changed))
    assert len(changed) == len(model)
    for key, values in as_onnx_reads_them(changed).items():
        np.testing.assert_array_equal(values, wanted.get(key, before[key]))
    assert weights(model)["whitening.bias"].tolist() == before["whitening.bias"].tolist(), "the model itself stays"


def test_lists_of_dimensions_are_read_packed_and_unpacked():
    tensor = numpy_helper.from_array(np.arange(300, dtype=np.float32).reshape(2, 150), "w")
    graph = onnx.helper.make_graph([], "g", [], [], initializer=[tensor])
    unpacked = onnx.helper.make_model(graph).SerializeToString()
    dimensions = b"\x08\x02\x08\x96\x01"  # 2 and 150, a field each
    assert unpacked.count(dimensions) == 1
    packed = unpacked.replace(dimensions, b"\x0a\x03\x02\x96\x01")  # the same in one field of three bytes
    for model in (unpacked, packed):
        assert weights(model)["w"].shape == (2, 150)
