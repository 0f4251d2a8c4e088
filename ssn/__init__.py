"""SimpleSliceNet deployment toolkit: slice-based anomaly detection in 3D brain MRI."""

__version__ = "0.1.0"
