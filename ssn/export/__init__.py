"""Export: checkpoint to bundle (ONNX). Needs the `train` extra."""
