"""The encoder in 8-bit integers: explicit QuantizeLinear/DequantizeLinear pairs, calibrated on real slices."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

_AT_ONCE = 24  # slices: bounds memory while calibrating
_EARLY = 6  # convolutions, up to the first map of a quarter of the slice's size


class _Slices(CalibrationDataReader):  # type: ignore[misc]
    """Hands out slices, a batch at a time, as the quantiser wants it."""

    def __init__(self, batches: Iterator[NDArray[np.float32]]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, Any] | None:
        """Next batch, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"slices": batch}


def sensitive_convolutions(encoder: ModelProto) -> set[str]:
    """Names of the convolutions whose 8-bit error ruins the map: the first few.

    Their few channels carry the image that all others are made from.
    """
    found = [node for node in encoder.graph.node if node.op_type == "Conv"]
    return {node.name for node in found[:_EARLY]}


def quantise(
    encoder: ModelProto,
    stacks: Sequence[NDArray[np.float32]],
    exclude: Collection[str] = (),
    *,
    symmetric: bool = True,
) -> ModelProto:
    """Quantise an encoder's convolutions, the only operators that cost time; weights per channel.

    Parameters
    ----------
    stacks : slices (D, H, W) of healthy volumes: their range is what is normal
    exclude : names of nodes that are left in FP32
    symmetric : signed activations around zero and FP32 biases, the only kind that TensorRT takes. Without, as CPUs take
        it: unsigned, with a range of its own, and after the clipping, so that no step is spent on what is clipped.
    """
    activations = QuantType.QInt8 if symmetric else QuantType.QUInt8

    def batches() -> Iterator[NDArray[np.float32]]:
        for slices in stacks:
            for start in range(0, len(slices), _AT_ONCE):
                yield slices[start : start + _AT_ONCE, None]

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises pre-processing that our exporter has done already
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "int8.onnx"
            own = ModelProto()  # the quantiser moves the weights of what it is given to a file of its own
            own.CopyFrom(encoder)
            quantize_static(
                own,
                path,
                _Slices(batches()),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"] if symmetric else ["Conv", "Clip"],
                per_channel=True,
                activation_type=activations,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(exclude),
                extra_options={
                    "ActivationSymmetric": symmetric,
                    "WeightSymmetric": True,
                    "QuantizeBias": not symmetric,
                },
            )
            return onnx.load(path)
    finally:
        logger.setLevel(level)
