"""ONNX Runtime on a GPU, timed: as it is, in half precision, channels last, and inside the CUDA pipeline."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from ssn.benchmarks.gpu.timing import WARM_UP, Opened, Report, attempt, consume, end_to_end, peak_memory, time_variants
from ssn.benchmarks.measure import interleaved
from ssn.core.bundle import Bundle
from ssn.core.slices import SliceStack
from ssn.export.variants import in_half
from ssn.runtime.backend import Batch, StageTimes, plan_batches
from ssn.runtime.cuda import Cuda
from ssn.runtime.device_pipeline import DevicePipeline
from ssn.runtime.memory import BatchLayout
from ssn.runtime.onnx_stages import OnnxStages
from ssn.runtime.onnxruntime import OnnxRuntimeBackend
from ssn.runtime.schedule import DEFAULT_SLOTS, Schedule


def time_onnxruntime(
    bundle: Bundle, batches: Sequence[Batch], scan: Path, max_batch: int, rounds: int
) -> Iterator[tuple[str, Report]]:
    """Time what `ssn-infer --device cuda` does without an engine; yields each way's name and what was found."""
    half = in_half(bundle)
    ways = {
        "onnxruntime_cuda": (bundle, False),
        "onnxruntime_cuda_fp16": (half, False),
        "onnxruntime_cuda_fp16_channels_last": (half, True),
    }
    for name, (graphs, channels_last) in ways.items():
        yield name, attempt(partial(_time_one, graphs, channels_last, batches, scan, max_batch, rounds))


def _time_one(
    bundle: Bundle, channels_last: bool, batches: Sequence[Batch], scan: Path, max_batch: int, rounds: int
) -> Report:
    opened = partial(OnnxRuntimeBackend, bundle, provider="cuda", channels_last=channels_last)

    def once() -> float:
        begin = time.perf_counter()
        with opened() as backend:
            consume(backend, batches, StageTimes())
        return time.perf_counter() - begin

    seconds, peak = peak_memory(once)
    with opened() as backend:
        run = partial(consume, backend, batches, StageTimes())
        spread = interleaved({"volume": run}, rounds=rounds, warm_up=WARM_UP)["volume"]
        return {
            "described": backend.describe(),
            "first_volume_s": round(seconds, 2),
            "peak_memory_mb": peak,
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

    @contextmanager
    def _opened(self, channels_last: bool, max_batch: int, overlap: bool, graphs: bool) -> Iterator[DevicePipeline]:
        with Cuda() as cuda:
            stages = OnnxStages(self._half, self._layout, graphs=graphs, channels_last=channels_last)
            windows = max_batch // self._layout.window
            try:
                schedule = Schedule(DEFAULT_SLOTS if overlap else 1, overlap)
                yield DevicePipeline(cuda, self._layout, windows, stages, schedule, graphs=graphs)
            finally:
                cuda.drain()
                stages.close()

    def _batches(self, max_batch: int) -> list[Batch]:
        return list(plan_batches(self._stack, self._bundle.spec.occupancy, max_batch))

    def time(self, scan: Path, rounds: int) -> Iterator[tuple[str, Report]]:
        """Time each layout with and without streams and graphs, its memory, and from file to map."""
        batches = self._batches(self._max_batch)
        for name, channels_last in {"channels last": True, "channels first": False}.items():
            opened = partial(self._opened, channels_last, self._max_batch)
            found = attempt(partial(self._first_volume, opened, batches))
            yield name, found
            found |= attempt(partial(self._difference, opened))
            yield name, found
            found |= attempt(partial(time_variants, opened, batches, rounds))
            yield name, found
            found["end_to_end"] = attempt(partial(self._end_to_end, opened, scan, rounds))
            yield name, found

    def _first_volume(self, opened: Opened, batches: Sequence[Batch]) -> Report:
        def once() -> float:
            begin = time.perf_counter()
            with opened(True, True) as pipeline:
                consume(pipeline, batches, StageTimes())
            return time.perf_counter() - begin

        seconds, peak = peak_memory(once)
        return {"first_volume_s": round(seconds, 2), "peak_memory_mb": peak}

    def _difference(self, opened: Opened) -> Report:
        """Compare with FP32: batches of two sizes in turn, so that each shape comes again after the other."""
        large, small = self._batches(self._max_batch), self._batches(self._max_batch // 2)
        mixed = [batch for pair in zip(large, small, strict=False) for batch in pair]
        with OnnxRuntimeBackend(self._bundle, provider="cuda") as reference:
            wanted = list(reference.run(mixed, StageTimes()))
        with opened(True, True) as pipeline:
            for _ in range(3):  # run, captured, launched
                given = list(pipeline.run(mixed, StageTimes()))
        differences = [float(np.abs(one - other).max()) for one, other in zip(given, wanted, strict=True)]
        return {"largest_difference": max(differences)}

    def _end_to_end(self, opened: Opened, scan: Path, rounds: int) -> Report:
        with opened(True, True) as pipeline:
            return end_to_end(pipeline, self._bundle, scan, self._max_batch, rounds)
