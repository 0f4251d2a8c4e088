"""Measurements of latency, memory and accuracy."""
