"""Lean inference: runs a bundle on volumes without torch."""
