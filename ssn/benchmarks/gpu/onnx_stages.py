"""ONNX Runtime as what computes in the CUDA pipeline: a bundle's graphs, on its stream and in its buffers.

By itself ONNX Runtime copies in, computes, copies out and waits, one batch after the other. Here both sessions compute
on the pipeline's stream, between addresses that stay the same, and return at once; copies pass beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE, Bundle
from ssn.runtime.device_pipeline import Slot
from ssn.runtime.memory import BatchLayout
from ssn.runtime.onnx_sessions import (
    PROVIDERS,
    Provider,
    cuda_options,
    open_session,
    provider_chain,
    session_options,
    told_in_one_line,
)

_Key = tuple[str, int, int, int]  # graph, slot, windows, places
_Tensor = tuple[str, str, tuple[int, ...], int]  # name, type, shape, address


class OnnxStages:
    """Encoder and flow graph, and a binding for each shape in each slot.

    Parameters
    ----------
    bundle : whose graphs take slices and give features in the layout's types
    graphs : let ONNX Runtime capture each binding's work in a CUDA graph of its own; the pipeline captures none then
    cuda : options of its CUDA provider
    provider : "cpu" only where a test has no device; the addresses are the host's then
    """

    def __init__(
        self,
        bundle: Bundle,
        layout: BatchLayout,
        *,
        graphs: bool = True,
        cuda: Mapping[str, str] | None = None,
        provider: Provider = "cuda",
    ) -> None:
        self._graphs = graphs
        self._bundle, self._layout, self._cuda, self._provider = bundle, layout, dict(cuda or {}), provider
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._bindings: dict[_Key, tuple[Any, ort.RunOptions]] = {}

    def _session(self, graph: str, stream: Any) -> ort.InferenceSession:
        """Open a graph's session, on the stream on which everything is computed."""
        if graph not in self._sessions:
            options = session_options()
            options.enable_mem_pattern = False  # it allocates anew in a shape's second run, which may be captured
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            cuda = cuda_options() | self._cuda
            cuda |= {"user_compute_stream": str(int(stream)), "enable_cuda_graph": str(int(self._graphs))}
            chain = provider_chain(self._provider, cuda)
            self._sessions[graph] = open_session(self._bundle, graph, options, chain, self._provider)
        return self._sessions[graph]

    def _bind(self, key: _Key, slot: Slot, stream: Any) -> tuple[Any, ort.RunOptions]:
        graph, _, windows, places = key
        layout, device = self._layout, "cpu" if self._provider == "cpu" else "cuda"
        grid = (windows, layout.channels, layout.cells, layout.cells)
        features: _Tensor = ("features", layout.features_dtype, grid, slot.device_features)
        pixels = (windows * layout.each, 1, layout.plane, layout.plane)
        slices: _Tensor = ("slices", layout.slices_dtype, pixels, slot.device_slices)
        where: _Tensor = ("places", "int64", (places,), slot.device_places)
        first: _Tensor = ("first", "int64", (1,), slot.device_first)
        values: _Tensor = ("log_likelihood", "float32", (places,), slot.device_values)
        taken, given = ([slices], features) if graph == ENCODER_FILE else ([features, where, first], values)
        binding = self._session(graph, stream).io_binding()
        for name, kind, shape, address in taken:
            binding.bind_input(name, device, 0, np.dtype(kind).type, shape, address)
        name, kind, shape, address = given
        binding.bind_output(name, device, 0, np.dtype(kind).type, shape, address)
        run = ort.RunOptions()
        run.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._graphs:
            run.add_run_config_entry("gpu_graph_id", str(len(self._bindings) + 1))
        return binding, run

    @told_in_one_line()
    def _run(self, key: _Key, slot: Slot, stream: Any) -> None:
        if key not in self._bindings:
            self._bindings[key] = self._bind(key, slot, stream)
        binding, options = self._bindings[key]
        self._sessions[key[0]].run_with_iobinding(binding, options)

    def encoder(self, slot: Slot, windows: int, stream: Any) -> None:
        """Queue the encoder."""
        self._run((ENCODER_FILE, slot.number, windows, 0), slot, stream)

    def flow(self, slot: Slot, windows: int, places: int, stream: Any) -> None:
        """Queue the flow."""
        self._run((FLOW_FILE, slot.number, windows, places), slot, stream)

    def on_the_cpu(self) -> list[str]:
        """Kinds of the nodes that the provider leaves to the CPU: with such ones no CUDA graph can be captured."""
        found = [
            f"{graph}: {node.op_type}"
            for graph, session in self._sessions.items()
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name == PROVIDERS["cpu"]
            for node in part.get_nodes()
        ]
        return sorted(set(found))

    def close(self) -> None:
        """Let go of bindings and sessions, before the stream and the buffers that they know."""
        self._bindings.clear()
        self._sessions.clear()
