"""One volume from file to file in a process of its own: `python -m ssn.benchmarks.one_volume JOB`, JOB as JSON.

It prints what the process took: seconds until it was ready, seconds for the volume, and its peak memory. Nothing else
is in the process, so its peak is the method's own.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssn.benchmarks.device_memory import PeakDeviceMemory
from ssn.benchmarks.runners import choose_engines, open_graph, open_module, open_slices
from ssn.benchmarks.volumes import Shape, network_input, write_residual
from ssn.core.volume import read_volume
from ssn.runtime.memory import MEGABYTE

if TYPE_CHECKING:
    from ssn.benchmarks.runners import Engine


@dataclass(frozen=True)
class Job:
    """What the process does.

    Attributes
    ----------
    bundle : folder of a slice pipeline; without, a baseline runs
    model : for a slice pipeline in torch, which
    baseline : name of a 3D network
    graph : its ONNX file; not for torch
    shape : what the network sees
    """

    engine: str
    threads: int
    scan: str
    folder: str
    bundle: str | None = None
    model: str | None = None
    baseline: str | None = None
    graph: str | None = None
    shape: Shape | None = None

    def as_argument(self) -> str:
        """Text to start the process with."""
        return json.dumps(asdict(self))


def run_job(job: Job) -> dict[str, Any]:
    """Do it; returns what it took."""
    (engine,) = choose_engines([job.engine])
    with PeakDeviceMemory() as device:
        before = peak_rss()
        start = time.perf_counter()
        ready, done = _slices(job, engine) if job.bundle else _baseline(job, engine)
    return {
        "before_mb": round(before / MEGABYTE, 1),
        "peak_mb": round(peak_rss() / MEGABYTE, 1),
        "ready_s": round(ready - start, 4),
        "volume_s": round(done - ready, 4),
        **device.as_json(),
    }


def peak_rss() -> int:
    """Most bytes of main memory that this process had at once.

    Linux's own count for this program, because getrusage also counts what the parent had when it forked.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _slices(job: Job, engine: Engine) -> tuple[float, float]:
    from ssn.benchmarks.contenders import run_slices
    from ssn.core.bundle import load_bundle

    assert job.bundle is not None
    bundle = load_bundle(Path(job.bundle))
    detector = None
    if engine.kind == "torch":
        from ssn.benchmarks.slice_models import make_detector

        detector = make_detector(job.model, Path(job.scan))  # type: ignore[arg-type]
    with open_slices(engine, bundle, detector, job.threads) as backend:
        ready = time.perf_counter()
        run_slices(Path(job.scan), bundle, backend, Path(job.folder))
        return ready, time.perf_counter()


def _baseline(job: Job, engine: Engine) -> tuple[float, float]:
    assert job.shape is not None
    shape: Shape = (job.shape[0], job.shape[1], job.shape[2])
    if engine.kind == "torch":
        from ssn.benchmarks.baselines import build_baseline, choose_baselines

        (baseline,) = choose_baselines([job.baseline or ""])
        run = open_module(engine, build_baseline(baseline, shape), job.threads)
    else:
        run = open_graph(engine, Path(job.graph or ""), job.threads)
    ready = time.perf_counter()
    volume = read_volume(Path(job.scan))
    whole = tuple(max(side, wanted) for side, wanted in zip(volume.data.shape, shape, strict=True))
    values = network_input(volume, (whole[0], whole[1], whole[2]))
    x, y, z = shape
    output = run(np.ascontiguousarray(values[:, :, :x, :y, :z]))
    if output.shape != values.shape:  # only then, and after the run: an array of ours is not the network's memory
        output = np.pad(output, [(0, side - own) for side, own in zip(values.shape, output.shape, strict=True)])
    write_residual(values, output, volume, Path(job.folder))
    return ready, time.perf_counter()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps(run_job(Job(**given))) + "\n")
