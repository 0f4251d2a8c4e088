"""Torch on a GPU, timed: eager, in half precision, compiled, and compiled inside the CUDA pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from ssn.benchmarks.gpu.detector import TorchDetector, TorchStages
from ssn.benchmarks.gpu.timing import WARM_UP, Report, attempt, time_variants
from ssn.benchmarks.measure import interleaved
from ssn.core.bundle import Bundle
from ssn.runtime.backend import Batch
from ssn.runtime.cuda import Cuda
from ssn.runtime.device_pipeline import DevicePipeline
from ssn.runtime.memory import BatchLayout
from ssn.runtime.schedule import DEFAULT_SLOTS, Schedule
from ssn.train.checkpoint import Detector


def time_torch(detector: Detector, batches: Sequence[Batch], rounds: int) -> Report:
    """Time the ways in which others would deploy the detector, in interleaved rounds."""
    ways = {
        "eager fp32 (convolutions in TF32), channels last": (torch.float32, False),
        "eager fp16, channels last": (torch.float16, False),
        "compiled fp16, channels last": (torch.float16, True),
    }
    result: Report = {}
    runs = {}
    for name, (dtype, compiled) in ways.items():
        made = attempt(partial(_warm, detector, dtype, compiled, batches))
        if isinstance(made, dict):
            result[name] = made
        else:
            runs[name] = partial(made.run, batches)
    for name, spread in interleaved(runs, rounds=rounds, warm_up=WARM_UP).items():
        result[name] = {"volume": spread.as_json()}
    return result


def _warm(detector: Detector, dtype: torch.dtype, compiled: bool, batches: Sequence[Batch]) -> TorchDetector:
    made = TorchDetector(detector, dtype, compiled=compiled)
    made.run(batches)
    return made


def time_torch_pipeline(
    detector: Detector, bundle: Bundle, batches: Sequence[Batch], max_batch: int, rounds: int
) -> Report:
    """Time the pipeline that TensorRT engines run in, with compiled torch in their place."""
    layout = BatchLayout.of(bundle.spec, "float16", "float16")
    compiled = TorchDetector(detector, torch.float16, compiled=True)

    @contextmanager
    def opened(overlap: bool, graphs: bool) -> Iterator[DevicePipeline]:
        with Cuda() as cuda:
            schedule = Schedule(DEFAULT_SLOTS if overlap else 1, overlap)
            stages = TorchStages(compiled, layout)
            yield DevicePipeline(cuda, layout, max_batch // layout.window, stages, schedule, graphs=graphs)

    return {"variants": time_variants(opened, batches, rounds)}
