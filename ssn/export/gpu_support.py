"""Whether a TensorRT runs on this GPU: asked with the smallest engine, before minutes are spent on a large one."""

from __future__ import annotations

from typing import Any

from onnx import TensorProto, helper

from ssn.core.engine_record import Device
from ssn.core.errors import BackendError, installing
from ssn.export.engine import Target, build_engine
from ssn.runtime.engine_stages import last_error_recorder


def require_supported(module: Any, device: Device, target: Target) -> None:
    """Build an engine of one operator for `target` and load it.

    Raises
    ------
    BackendError
        If TensorRT refuses the GPU, in its own words.
    ExportError
        If it does not even build the engine.
    """
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "one_operator", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    built = build_engine(module, model.SerializeToString(), {"x": ((1,), (1,), (2,))}, target, name="one operator")
    runtime = module.Runtime(module.Logger(module.Logger.INTERNAL_ERROR))
    errors = last_error_recorder(module)
    runtime.error_recorder = errors
    if runtime.deserialize_cuda_engine(built.data) is None:
        raise BackendError(
            f"{module.__name__} {module.__version__} does not run on {device.name} ({errors.last}); take another "
            f"TensorRT, or ONNX Runtime with CUDA, which needs no engine: {installing('gpu')}"
        )
