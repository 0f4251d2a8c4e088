"""The suite that needs a GPU: docs/gpu.md."""
