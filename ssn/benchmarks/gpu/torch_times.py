"""Torch on a GPU, timed: eager, in half precision, compiled, and compiled inside the CUDA pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssn.benchmarks.gpu.detector import TorchDetector, TorchStages
from ssn.benchmarks.gpu.fused import is_fusible
from ssn.benchmarks.gpu.kernels import kernel_times
from ssn.benchmarks.gpu.timing import (
    WARM_UP,
    Report,
    attempt,
    consume,
    end_to_end,
    peak_memory,
    pipeline_of,
    stages_ms,
    time_variants,
)
from ssn.benchmarks.measure import interleaved
from ssn.core.bundle import Bundle
from ssn.core.slices import SliceStack
from ssn.export.parity import Answer, Sample, answers, answers_on_cpu, measure, prepare
from ssn.runtime.backend import Batch, StageTimes, plan_batches
from ssn.runtime.cuda import Cuda
from ssn.runtime.device_pipeline import DevicePipeline
from ssn.runtime.memory import MEGABYTE, BatchLayout
from ssn.train.checkpoint import Detector


def time_torch(detector: Detector, batches: Sequence[Batch], rounds: int) -> Report:
    """Time the ways in which others would deploy the detector, in interleaved rounds."""
    torch.backends.cudnn.benchmark = True
    ways: dict[str, dict[str, Any]] = {
        "eager fp32 (convolutions in TF32), channels last": {"dtype": torch.float32},
        "eager fp16, channels last": {"dtype": torch.float16},
        "compiled fp16, channels last": {"dtype": torch.float16, "compiled": True},
    }
    result: Report = {}
    runs = {}
    for name, options in ways.items():
        made = attempt(partial(_warm, detector, batches, options))
        if isinstance(made, dict):
            result[name] = made
        else:
            runs[name] = partial(made.run, batches)
    for name, spread in interleaved(runs, rounds=rounds, warm_up=WARM_UP).items():
        result[name] = {"volume": spread.as_json()}
    return result


def _warm(detector: Detector, batches: Sequence[Batch], options: Mapping[str, Any]) -> TorchDetector:
    made = TorchDetector(detector, **options)
    made.run(batches)
    return made


class TorchPipelines:
    """The pipeline that TensorRT engines run in, with torch in their place, in half precision.

    Parameters
    ----------
    max_batch : slices a batch
    """

    def __init__(self, detector: Detector, bundle: Bundle, stack: SliceStack, max_batch: int) -> None:
        torch.backends.cudnn.benchmark = True
        self._detector, self._bundle, self._stack, self._max_batch = detector, bundle, stack, max_batch
        self._layout = BatchLayout.of(bundle.spec, "float16", "float16")
        # "compiled": by `torch.compile`; "fused": a ResNet's trunk in cuDNN's fused kernels, the rest compiled.
        self.kinds = ("compiled", *(["fused"] if is_fusible(detector.network) else []))
        self._made: dict[str, TorchDetector] = {}
        self._weights: dict[str, int] = {}  # bytes on the device

    @contextmanager
    def _opened(self, kind: str, max_batch: int, overlap: bool, graphs: bool) -> Iterator[DevicePipeline]:
        if kind not in self._made:
            before = torch.cuda.memory_allocated()
            self._made[kind] = TorchDetector(self._detector, torch.float16, compiled=True, fused=kind == "fused")
            self._weights[kind] = torch.cuda.memory_allocated() - before
        with Cuda() as cuda:
            stages = TorchStages(self._made[kind], self._layout)
            yield pipeline_of(cuda, self._layout, max_batch, stages, overlap=overlap, graphs=graphs)

    def _batches(self, max_batch: int) -> list[Batch]:
        return list(plan_batches(self._stack, self._bundle.spec.occupancy, max_batch))

    def time(self, scan: Path, rounds: int) -> Report:
        """Time each kind with and without streams and graphs, and from file to map; hold its answers against the CPU's.

        Parameters
        ----------
        scan : the volume that the stack was cut from
        """
        sample = prepare(self._bundle, scan)
        reference = answers_on_cpu(self._bundle, [sample])
        result: Report = {}
        batches = self._batches(self._max_batch)
        for kind in self.kinds:
            opened = partial(self._opened, kind, self._max_batch)
            result[kind] = attempt(partial(time_variants, opened, batches, rounds))
            result[kind]["drift"] = attempt(partial(self._drift, kind, batches, sample, reference))
            result[kind]["end_to_end"] = attempt(partial(self._end_to_end, kind, scan, rounds))
        return result

    def _end_to_end(self, kind: str, scan: Path, rounds: int) -> Report:
        with self._opened(kind, self._max_batch, True, True) as pipeline:
            return end_to_end(pipeline, self._bundle, scan, self._max_batch, rounds)

    def _drift(self, kind: str, batches: Sequence[Batch], sample: Sample, reference: Sequence[Answer]) -> Report:
        with self._opened(kind, self._max_batch, True, True) as pipeline:
            values = np.concatenate(list(pipeline.run(batches, StageTimes())))
        places = np.concatenate([batch.places for batch in batches])
        given = answers(self._bundle, [sample], lambda stack: (places, values))
        return asdict(measure(self._bundle, [sample], reference, given))

    def time_batches(self, sizes: Sequence[int], rounds: int) -> Report:
        """Time the best kind, with streams and graphs, by how many slices a batch has; and what memory that takes."""
        return {str(size): attempt(partial(self._time_batches, size, rounds)) for size in sizes}

    def _time_batches(self, size: int, rounds: int) -> Report:
        batches = self._batches(size)
        with self._opened(self.kinds[-1], size, True, True) as pipeline:
            for _ in range(WARM_UP):
                consume(pipeline, batches, StageTimes())
            times = StageTimes()
            spread = interleaved({"volume": partial(consume, pipeline, batches, times)}, rounds=rounds, warm_up=0)
            return {
                "kind": self.kinds[-1],
                "volume": spread["volume"].as_json(),
                "device_ms": stages_ms(times, rounds),
                "profile": kernel_times(partial(consume, pipeline, batches, StageTimes())),
                "peak_memory_mb": {count: attempt(partial(self._peak, size, batches * count)) for count in (1, 4)},
            }

    def _peak(self, size: int, batches: Sequence[Batch]) -> float:
        """GPU memory in MB at its height, weights included."""
        torch.cuda.empty_cache()

        def once() -> None:
            with self._opened(self.kinds[-1], size, True, True) as pipeline:
                consume(pipeline, batches, StageTimes())

        # The weights stay on the device from one measurement to the next.
        return round(peak_memory(once)[1] + self._weights[self.kinds[-1]] / MEGABYTE, 1)
