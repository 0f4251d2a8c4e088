"""The detector in torch on a GPU: what others would deploy, and what the CUDA pipeline can run without TensorRT."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssn.benchmarks.gpu.fused import FusedNetwork
from ssn.export.graphs import FlowGraph
from ssn.runtime.backend import Batch
from ssn.runtime.device_pipeline import PLACE_PARTS, Slot
from ssn.runtime.memory import BatchLayout
from ssn.runtime.schedule import bucket
from ssn.train.checkpoint import Detector

_MATMUL_SIZE, _MATMUL_ROUNDS = 8192, 20


class TorchDetector(nn.Module):
    """Encoder and folded flow with every constant computed beforehand, in one precision.

    Parameters
    ----------
    detector : stays as it is; its weights are copied
    dtype : torch.float32 or torch.float16
    compiled : pass both halves through `torch.compile`
    fused : compute a ResNet's trunk in cuDNN's fused kernels (`ssn.benchmarks.gpu.fused`)
    device : where it computes
    """

    def __init__(
        self,
        detector: Detector,
        dtype: torch.dtype,
        *,
        compiled: bool = False,
        fused: bool = False,
        device: str = "cuda",
    ) -> None:
        super().__init__()
        graph = FlowGraph(detector)
        self.cells = graph.plane.shape[0]
        self.each = detector.config.slices_a_window
        self.tables = [
            (plane.to(device, dtype), None if depth is None else depth.to(device, dtype))
            for plane, depth in graph.tables()
        ]
        network: nn.Module = detector.network
        network = FusedNetwork(detector.network, compiled=compiled) if fused else copy.deepcopy(network)
        network = network.to(device, dtype)
        self.network = network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.graph = graph.to(device, dtype).eval()
        self.device, self.dtype = device, dtype
        self.encode: Callable[[Tensor], Tensor] = self.network
        self.score: Callable[[Tensor, Tensor, Tensor], Tensor] = self._score
        if compiled:
            from torch import _dynamo

            _dynamo.config.cache_size_limit = 64  # shapes are few, but more than its default of 8
            if not fused:
                self.encode = torch.compile(self.network, dynamic=False)
            self.score = torch.compile(self._score, dynamic=False)
        if device == "cuda":  # weights are copied on a stream that the pipeline's do not wait for
            torch.cuda.synchronize()

    def _score(self, features: Tensor, places: Tensor, first: Tensor) -> Tensor:
        return self.graph.at(features, places, first, self.tables)

    @torch.inference_mode()
    def run(self, batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """Run batches as a plain torch program does: one after the other, each copied in and out."""
        results = []
        for batch in batches:
            slices = torch.from_numpy(batch.slices).to(self.device, self.dtype, memory_format=torch.channels_last)
            places = torch.from_numpy(self._padded(batch)).to(self.device)
            first = torch.tensor([batch.first], device=self.device)
            values = self.score(self.encode(slices), places, first).float().cpu().numpy()
            results.append(values[: len(batch.places)])
        return results

    def _padded(self, batch: Batch) -> NDArray[np.int64]:
        """Places at one of the pipeline's own few sizes: a compiled function is compiled for each."""
        most = len(batch.slices) // self.each * self.cells
        size = bucket(len(batch.places), most, PLACE_PARTS)
        return np.pad(batch.places, (0, size - len(batch.places)), mode="edge")


class TorchStages:
    """A `TorchDetector` as what computes in the CUDA pipeline: on its streams, in its buffers, in its graphs.

    A captured graph writes to the addresses that torch's pool gave its intermediates. The pool is one a stream and
    all computing is on one stream, so whoever gets such an address next uses it before or after, never at once.
    """

    def __init__(self, detector: TorchDetector, layout: BatchLayout) -> None:
        self._detector, self._layout = detector, layout

    def encoder(self, slot: Slot, windows: int, stream: Any) -> None:
        """Queue the encoder."""
        layout = self._layout
        slices = _view(slot.device_slices, (windows * layout.each, 1, layout.plane, layout.plane), layout.slices_dtype)
        target = self._features(slot, windows)
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.ExternalStream(int(stream))):
            features = self._detector.encode(slices)
            target.copy_(features)

    def flow(self, slot: Slot, windows: int, places: int, stream: Any) -> None:
        """Queue the flow."""
        chosen = _view(slot.device_places, (places,), "int64")
        first = _view(slot.device_first, (1,), "int64")
        target = _view(slot.device_values, (places,), "float32")
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.ExternalStream(int(stream))):
            values = self._detector.score(self._features(slot, windows), chosen, first)
            target.copy_(values)

    def _features(self, slot: Slot, windows: int) -> Tensor:
        # Channels last, as the encoder writes and the flow reads them.
        layout = self._layout
        shape = (windows, layout.cells, layout.cells, layout.channels)
        return _view(slot.device_features, shape, layout.features_dtype).permute(0, 3, 1, 2)


def _view(address: int, shape: tuple[int, ...], dtype: str) -> Tensor:
    """Look at device memory as a tensor, without a copy."""

    class Memory:
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (address, False),
            "version": 3,
        }

    return torch.as_tensor(Memory(), device="cuda")


def matmul_rate() -> float:
    """Measure this GPU's FLOP/s in one large FP16 matrix product, the roof that times are held against."""
    a, b = (torch.randn(_MATMUL_SIZE, _MATMUL_SIZE, device="cuda", dtype=torch.float16) for _ in range(2))
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        torch.mm(a, b)
    begin.record()
    for _ in range(_MATMUL_ROUNDS):
        torch.mm(a, b)
    end.record()
    end.synchronize()
    return 2 * _MATMUL_SIZE**3 * _MATMUL_ROUNDS / (begin.elapsed_time(end) / 1000)


@torch.inference_mode()
def count_flops(detector: Detector) -> tuple[float, float]:
    """Count FLOPs (a multiply-add is two) of the encoder a window and of the flow a place, on the CPU."""
    grid = detector.config.grid
    graph = FlowGraph(detector)
    with FlopCounterMode(display=False) as encoder:
        features = detector.network(torch.zeros(detector.config.slices_a_window, 1, grid.plane, grid.plane))
    conditions = [table[:64] for table in graph.flow.condition_tables(detector.codes(torch.arange(64)))]
    with FlopCounterMode(display=False) as flow:
        graph.score(torch.zeros(64, features.shape[1]), conditions)
    return float(encoder.get_total_flops()), float(flow.get_total_flops()) / 64
