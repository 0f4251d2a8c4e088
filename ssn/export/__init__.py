"""Export: checkpoint to bundle (ONNX; needs the `train` extra), and bundle to TensorRT engines (no torch)."""
