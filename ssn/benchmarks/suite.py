"""The commands of ssn-bench that compare with 3D networks: each measures and writes one result file as it goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ssn.benchmarks.measure import Clock, Tell, environment, matmul_rate_cpu
from ssn.benchmarks.results import Kind, result_path
from ssn.benchmarks.slice_models import ModelName
from ssn.benchmarks.volumes import NATIVE, STANDARD, Scan, make_scan
from ssn.core.atomic import write_json_atomic

SLICE_SCALING = ("AutoEncoder", "UNet 16-256")  # light 3D networks that are timed by slices beside the pipeline
WORK = "work"  # folder in the results' folder: the phantom, exported networks, what is written while measuring


@dataclass(frozen=True)
class Suite:
    """What all measurements share.

    Attributes
    ----------
    output : folder of the results
    models : slice pipelines
    against : names of 3D networks; all if empty
    native : a volume of 240 x 240 x 155 instead of 192 x 192 x 96
    """

    output: Path
    models: Sequence[ModelName]
    engines: Sequence[str]
    against: Sequence[str]
    threads: int
    native: bool = False
    overwrite: bool = False

    @property
    def work(self) -> Path:
        """Folder for what is made on the way; made if missing."""
        folder = self.output / WORK
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def scan(self) -> Scan:
        """Write the volume that everything is measured on."""
        return make_scan(self.work, NATIVE if self.native else STANDARD)


def run_latency(suite: Suite, *, minutes: float | None, rounds: int, full: bool, decides: float, tell: Tell) -> Path:
    """Measure times of slice pipelines and 3D networks; `minutes` are for the timing, after all has been made."""
    from ssn.benchmarks.baselines import choose_baselines
    from ssn.benchmarks.contenders import export_baseline, slice_models
    from ssn.benchmarks.latency import LatencyPlan, count_blocks, measure_latency, timed_shape
    from ssn.benchmarks.runners import choose_engines, engine_problem

    path = result_path(suite.output, "latency", overwrite=suite.overwrite)
    engines = choose_engines(suite.engines)
    baselines = choose_baselines(suite.against)
    scan = suite.scan()
    tell("making the slice pipelines", 0, 1)
    torch = any(engine.kind == "torch" for engine in engines)
    models = slice_models(suite.models, suite.work, scan.path, torch=torch)
    plan = LatencyPlan(scan, models, baselines, engines, suite.threads, rounds, suite.work, full, decides)
    if any(engine.kind != "torch" and engine_problem(engine) is None for engine in engines):
        for index, baseline in enumerate(baselines):
            tell(f"exporting {baseline.name}", index, len(baselines))
            export_baseline(baseline, timed_shape(plan, baseline), suite.work)
    extra = {
        "volume": scan.shape,
        "rounds": rounds,
        "minutes": minutes,
        "fp32_matmul_gflops": round(matmul_rate_cpu() / 1e9, 1),
    }
    rows = measure_latency(plan, Clock(minutes, count_blocks(plan)), tell)
    return _collect(suite, "latency", path, rows, scan, extra)


def run_variants(suite: Suite, *, minutes: float | None, tell: Tell) -> Path:
    """Measure the steps of the packaged model on the packaged volume, and the main ones of the heavy one.

    `minutes` are for the times of each model's steps; accuracy takes as long as it takes.
    """
    from ssn.benchmarks.contenders import slice_bundle
    from ssn.benchmarks.steps.lesioned import make_lesioned
    from ssn.benchmarks.steps.trained import measure_trained_steps
    from ssn.benchmarks.steps.variants import Ground, heavy_steps, measure_files, measure_variants, steps
    from ssn.core.bundle import load_bundle
    from ssn.runtime.packaged import DEFAULT_BUNDLE, DEMO_VOLUME

    path = result_path(suite.output, "variants", overwrite=suite.overwrite)
    demo, threads = DEMO_VOLUME, suite.threads

    def rows() -> Iterator[dict[str, Any]]:
        tell("making volumes with lesions", 0, 1)
        lesioned = make_lesioned(suite.work / "lesioned", workers=threads)
        packaged = Ground(load_bundle(DEFAULT_BUNDLE), demo, suite.work, lesioned)
        yield from measure_variants(packaged, steps(threads), minutes=minutes, tell=tell)
        tell("steps that need another training", 0, 1)
        yield from measure_trained_steps(demo, suite.work, threads=threads)
        yield from measure_files(demo, suite.work)
        if "wide_resnet50_2" in suite.models:
            scan = suite.scan().path
            wide = Ground(slice_bundle("wide_resnet50_2", suite.work, scan), scan, suite.work)
            for row in measure_variants(wide, heavy_steps(threads), minutes=minutes, tell=tell):
                yield row | {"step": f"{row['method']}: {row['step']}"}

    return _collect(suite, "variants", path, rows(), Scan(demo, NATIVE), {"minutes": minutes})


def run_memory(suite: Suite, *, longest: float, tell: Tell) -> Path:
    """Measure peak memory and cold start."""
    from ssn.benchmarks.baselines import choose_baselines
    from ssn.benchmarks.contenders import slice_models
    from ssn.benchmarks.memory import MemoryPlan, measure_memory
    from ssn.benchmarks.runners import choose_engines

    path = result_path(suite.output, "memory", overwrite=suite.overwrite)
    engines, baselines = choose_engines(suite.engines), choose_baselines(suite.against)
    scan = suite.scan()
    models = slice_models(suite.models, suite.work, scan.path, torch=False)
    plan = MemoryPlan(scan, models, baselines, engines, suite.threads, suite.work, longest=longest)
    return _collect(suite, "memory", path, measure_memory(plan, tell), scan, {})


def run_throughput(suite: Suite, *, volumes: int, rounds: int, tell: Tell) -> Path:
    """Measure cohorts of the slice pipelines with ONNX Runtime."""
    from ssn.benchmarks.baselines import choose_baselines
    from ssn.benchmarks.contenders import slice_bundle
    from ssn.benchmarks.throughput import measure_scaling, measure_slices, measure_throughput

    path = result_path(suite.output, "throughput", overwrite=suite.overwrite)
    scan, threads = suite.scan(), suite.threads

    def rows() -> Iterator[dict[str, Any]]:
        for model in suite.models:
            bundle = slice_bundle(model, suite.work, scan.path)
            whole = partial(tell, f"{model}: {volumes} volumes, each part alone and all overlapped")
            row = measure_throughput(
                scan.path, bundle, suite.work, volumes=volumes, rounds=rounds, threads=threads, tell=whole
            )
            row["method"] = model
            tell(f"{model} and {', '.join(SLICE_SCALING)}: by slices", 0, 1)
            light = choose_baselines(SLICE_SCALING)
            by_slices = measure_slices(
                scan, bundle, light, suite.work, counts=(24, 48, 96), rounds=rounds, threads=threads
            )
            row["slices"] = by_slices.pop(bundle.spec.name)
            row["slices_3d"] = by_slices
            # Far more volumes than are in memory at once: that is where it would still grow.
            counts = [count for count in (1, 2, 4, 8, 16) if count <= volumes] + [8 * volumes]
            row["scaling"] = measure_scaling(scan.path, bundle, suite.work, counts=counts, threads=threads, tell=tell)
            yield row

    return _collect(suite, "throughput", path, rows(), scan, {})


def _collect(
    suite: Suite, kind: Kind, path: Path, rows: Iterable[dict[str, Any]], scan: Scan, extra: dict[str, Any]
) -> Path:
    """Write the file anew after each row, so that a run that is cut off leaves what it measured."""
    result: dict[str, Any] = {
        "kind": kind,
        "environment": environment(threads=suite.threads, scan=scan.path),
        **extra,
        "rows": [],
    }
    for row in rows:
        result["rows"].append(row)
        write_json_atomic(path, result, overwrite=True)
    write_json_atomic(path, result, overwrite=True)
    return path
