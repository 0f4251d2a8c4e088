"""SimpleSliceNet deployment toolkit: slice-based anomaly detection in 3D brain MRI."""

import os
import sys

__version__ = "0.1.0"

# Volumes are patients' data, so nothing that runs here reports to anyone. ONNX Runtime does from 1.29 on, unless told
# not to before it is loaded; OpenVINO leaves an identifier in the home folder, unless it cannot import this module.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
