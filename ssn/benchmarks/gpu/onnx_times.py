"""ONNX Runtime on a GPU, timed: as it is, on tensor cores, in half precision, and inside the CUDA pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from ssn.benchmarks.gpu.onnx_stages import OnnxStages
from ssn.benchmarks.gpu.timing import (
    WARM_UP,
    Opened,
    Report,
    attempt,
    consume,
    end_to_end,
    first_volume,
    pipeline_of,
    time_variants,
)
from ssn.benchmarks.measure import interleaved
from ssn.core.bundle import Bundle
from ssn.core.slices import SliceStack
from ssn.export.variants import in_half
from ssn.runtime.backend import Batch, StageTimes, plan_batches
from ssn.runtime.cuda import Cuda
from ssn.runtime.device_pipeline import DevicePipeline
from ssn.runtime.memory import BatchLayout
from ssn.runtime.onnxruntime import OnnxRuntimeBackend

# Without `use_tf32` its convolutions do without tensor cores in FP16 as well (`deselect_numeric_notes` in its conv.cc).
_TENSOR_CORES = {"use_tf32": "1"}
_CHANNELS_LAST = {**_TENSOR_CORES, "prefer_nhwc": "1"}


def time_onnxruntime(
    bundle: Bundle, batches: Sequence[Batch], scan: Path, max_batch: int, rounds: int
) -> Iterator[tuple[str, Report]]:
    """Time ONNX Runtime as `ssn-infer --device cuda` runs it, and in ways that might be faster, by name."""
    half = in_half(bundle)
    ways: dict[str, tuple[Bundle, Mapping[str, str]]] = {
        "onnxruntime_cuda": (bundle, {}),
        "onnxruntime_cuda_tf32": (bundle, _TENSOR_CORES),
        "onnxruntime_cuda_fp16_tensor_cores": (half, _TENSOR_CORES),
        "onnxruntime_cuda_fp16_tensor_cores_channels_last": (half, _CHANNELS_LAST),
    }
    for name, (graphs, options) in ways.items():
        yield name, attempt(partial(_time_one, graphs, options, batches, scan, max_batch, rounds))


def _time_one(
    bundle: Bundle, options: Mapping[str, str], batches: Sequence[Batch], scan: Path, max_batch: int, rounds: int
) -> Report:
    opened = partial(OnnxRuntimeBackend, bundle, provider="cuda", cuda=options)

    first = first_volume(opened, batches)
    with opened() as backend:
        run = partial(consume, backend, batches, StageTimes())
        spread = interleaved({"volume": run}, rounds=rounds, warm_up=WARM_UP)["volume"]
        return {
            "described": backend.describe(),
            **first,
            "volume": spread.as_json(),
            "end_to_end": end_to_end(backend, bundle, scan, max_batch, rounds),
        }


class OnnxPipelines:
    """The pipeline that TensorRT engines run in, with ONNX Runtime in their place, in half precision.

    Parameters
    ----------
    max_batch : slices a batch
    """

    def __init__(self, bundle: Bundle, stack: SliceStack, max_batch: int) -> None:
        self._bundle, self._stack, self._max_batch = bundle, stack, max_batch
        self._half = in_half(bundle, edges="fp16")
        self._layout = BatchLayout.of(bundle.spec, "float16", "float16")
        self._on_the_cpu: list[str] = []

    @contextmanager
    def _opened(self, options: Mapping[str, str], overlap: bool, graphs: bool) -> Iterator[DevicePipeline]:
        with Cuda() as cuda:
            stages = OnnxStages(self._half, self._layout, graphs=graphs, cuda=options)
            try:
                yield pipeline_of(cuda, self._layout, self._max_batch, stages, overlap=overlap, graphs=False)
                self._on_the_cpu = stages.on_the_cpu()
            finally:
                cuda.drain()
                stages.close()

    def _batches(self, max_batch: int) -> list[Batch]:
        return list(plan_batches(self._stack, self._bundle.spec.occupancy, max_batch))

    def time(self, scan: Path, rounds: int) -> Iterator[tuple[str, Report]]:
        """Time each layout with and without streams and graphs, its memory, and from file to map."""
        batches = self._batches(self._max_batch)
        for name, options in {"channels last": _CHANNELS_LAST, "channels first": _TENSOR_CORES}.items():
            opened, self._on_the_cpu = partial(self._opened, options), []
            found = attempt(partial(first_volume, partial(opened, True, True), batches))
            graphs = "problem" not in found
            if not graphs:
                without = attempt(partial(first_volume, partial(opened, True, False), batches))
                found = {"graphs_refused": found["problem"], **without}
            found["on_the_cpu"] = self._on_the_cpu
            yield name, found
            found["from_fp32"] = attempt(partial(self._difference, opened, graphs))
            yield name, found
            found |= attempt(partial(time_variants, opened, batches, rounds))
            yield name, found
            found["end_to_end"] = attempt(partial(self._end_to_end, opened, graphs, scan, rounds))
            yield name, found

    def _difference(self, opened: Opened, graphs: bool) -> Report:
        """Compare with FP32: batches of two sizes in turn, so that each shape comes again after the other."""
        large, small = self._batches(self._max_batch), self._batches(self._max_batch // 2)
        mixed = [batch for pair in zip(large, small, strict=False) for batch in pair]
        with OnnxRuntimeBackend(self._bundle, provider="cuda") as reference:
            wanted = list(reference.run(mixed, StageTimes()))
        with opened(True, graphs) as pipeline:
            for _ in range(3):  # run, captured, launched
                given = list(pipeline.run(mixed, StageTimes()))
        differences = [float(np.abs(one - other).max()) for one, other in zip(given, wanted, strict=True)]
        return {"largest_difference": max(differences)}

    def _end_to_end(self, opened: Opened, graphs: bool, scan: Path, rounds: int) -> Report:
        with opened(True, graphs) as pipeline:
            return end_to_end(pipeline, self._bundle, scan, self._max_batch, rounds)
