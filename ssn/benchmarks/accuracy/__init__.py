"""Accuracy of the detector beside other methods: docs/bench.md, Accuracy."""
