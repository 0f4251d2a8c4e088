"""A step that the product does not take: the encoder sees only the rectangle of a slice that may hold brain.

A bundle's graphs have one size, so they are cut to the rectangle here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, Bundle, write_bundle
from ssn.core.slices import SliceStack

_COARSEST = 16  # voxels: the encoder's coarsest stride, which must divide what it sees


@dataclass(frozen=True)
class Box:
    """Rows and columns of map cells, from the first up to, not including, the second."""

    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Map cells a column and a row."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    def cut(self, stack: SliceStack) -> SliceStack:
        """Cut a stack's slices and occupancy to the box; its places are then counted in the box."""
        voxels = stack.slices.shape[1] // stack.occupancy.shape[1]
        rows, columns = slice(*self.rows), slice(*self.columns)
        plane = slice(rows.start * voxels, rows.stop * voxels), slice(columns.start * voxels, columns.stop * voxels)
        return replace(
            stack, slices=np.ascontiguousarray(stack.slices[:, *plane]), occupancy=stack.occupancy[:, rows, columns]
        )

    def places_in_grid(self, places: NDArray[np.int64], cells: int) -> NDArray[np.int64]:
        """Turn places (L,) counted in the box into places of the grid of `cells` x `cells` map cells a window."""
        height, width = self.shape
        window, within = np.divmod(places, height * width)
        row, column = np.divmod(within, width)
        return (window * cells + row + self.rows[0]) * cells + column + self.columns[0]


def box_of(stacks: Iterable[SliceStack]) -> Box:
    """Find the smallest box that the encoder can take with all cells that hold any brain, of all stacks."""
    stacks = list(stacks)
    held = np.any([(stack.occupancy > 0).any(0) for stack in stacks], axis=0)
    step = _COARSEST * len(held) // stacks[0].slices.shape[1]  # cells
    sides = []
    for axis in (1, 0):
        inside = np.flatnonzero(held.any(axis))
        sides.append((int(inside[0]) // step * step, -(-(int(inside[-1]) + 1) // step) * step))
    return Box(*sides)


def cut_to_box(bundle: Bundle, box: Box, folder: Path) -> Bundle:
    """Write the same model with graphs that take the box alone to `folder`/box."""
    spec = bundle.spec
    graphs = {
        ENCODER_FILE: _cut_encoder(bundle.read(ENCODER_FILE), box, spec.grid.plane // spec.cells),
        FLOW_FILE: _cut_flow(bundle.read(FLOW_FILE), box, spec.cells),
    }
    return write_bundle(folder / "box", spec, graphs, bundle.calibration, {}, overwrite=True)


def _cut_encoder(data: bytes, box: Box, voxels: int) -> bytes:
    """Give an encoder another size: of its input, and of its maps wherever a constant holds their shape."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(data)
    graph = model.graph
    (given,), (found,) = graph.input, graph.output
    plane = given.type.tensor_type.shape.dim[2].dim_value
    for axis, side in enumerate(box.shape, 2):
        given.type.tensor_type.shape.dim[axis].dim_value = side * voxels
        found.type.tensor_type.shape.dim[axis].dim_value = side
    for constant in graph.initializer:
        values = numpy_helper.to_array(constant)
        if values.dtype != np.int64 or values.ndim == 0 or len(values) < 2:
            continue
        height, width = values[-2:].tolist()
        if height == width > 1 and plane % width == 0:  # the shape of a map
            cut = np.array([side * voxels * width // plane for side in box.shape])
            constant.CopyFrom(numpy_helper.from_array(np.concatenate([values[:-2], cut]), constant.name))
    del graph.value_info[:]
    result: bytes = model.SerializeToString()
    return result


def _cut_flow(data: bytes, box: Box, cells: int) -> bytes:
    """Leave a flow the location codes inside the box, and have it count so many cells a window."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(data)
    graph = model.graph
    shape = next(given for given in graph.input if given.name == "features").type.tensor_type.shape
    for axis, side in enumerate(box.shape, 2):
        shape.dim[axis].dim_value = side
    for constant in graph.initializer:
        values = numpy_helper.to_array(constant)
        if constant.name == "plane":
            rows = values.reshape(cells, cells, -1)[slice(*box.rows), slice(*box.columns)]
            cut = np.ascontiguousarray(rows.reshape(-1, rows.shape[-1]))
        elif values.size <= 3 and (values == cells**2).any():  # shapes, and the count of cells as integer and float
            cut = np.where(values == cells**2, np.prod(box.shape), values).astype(values.dtype)
        else:
            continue
        constant.CopyFrom(numpy_helper.from_array(cut, constant.name))
    del graph.value_info[:]
    result: bytes = model.SerializeToString()
    return result
