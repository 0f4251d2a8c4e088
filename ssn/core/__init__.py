"""Shared numerics and file handling: numpy and nibabel only, never torch."""
