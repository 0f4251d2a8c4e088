"""The page docs/performance-gpu.md, made from what `scripts/gpu_suite` wrote: no number on it comes from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssn.benchmarks.pages.tables import markdown_table, number
from ssn.benchmarks.results import read_json
from ssn.core.errors import ResultsError

Found = Mapping[str, Any]
_STAGES = ("copy_in", "encoder", "flow", "copy_out")
_SHOWN_KERNELS, _NAME = 10, 64  # rows, and characters of a name
_ONNX_RUNTIME = {
    "onnxruntime_cuda": "ONNX Runtime, CUDA, FP32",
    "onnxruntime_cuda_tf32": "ONNX Runtime, CUDA, TF32",
    "onnxruntime_cuda_fp16_tensor_cores": "ONNX Runtime, CUDA, FP16",
    "onnxruntime_cuda_fp16_tensor_cores_channels_last": "ONNX Runtime, CUDA, FP16, channels last",
    # as it was measured before `use_tf32` was known to decide in FP16 as well
    "onnxruntime_cuda_fp16": "ONNX Runtime, CUDA, FP16, no tensor cores",
    "onnxruntime_cuda_fp16_channels_last": "ONNX Runtime, CUDA, FP16, channels last, no tensor cores",
}
_GROUPS = ("task peer", "ceiling")


@dataclass(frozen=True)
class GpuResults:
    """What was measured on one GPU.

    Attributes
    ----------
    models, networks : by name; 3D networks that could not be measured are left out
    """

    environment: Found
    models: Mapping[str, Found]
    networks: Mapping[str, Found]


def read_gpu_results(folder: Path) -> GpuResults:
    """Read a folder's gpu-*.json.

    Raises
    ------
    ResultsError
        If there is none, or they are of several GPUs.
    """
    files = {path: read_json(path) for path in sorted(folder.glob("gpu-*.json"))}
    if not files:
        raise ResultsError(f"{folder}: holds no gpu-*.json; make them with scripts/gpu_suite")
    for path, found in files.items():
        if not (found.get("environment") or {}).get("gpu"):
            raise ResultsError(f"{path}: is no result of scripts/gpu_suite; measure it again")
    gpus = {found["environment"]["gpu"]["name"] for found in files.values()}
    if len(gpus) > 1:
        raise ResultsError(f"{folder}: holds results of {', '.join(sorted(gpus))}; give each GPU a folder of its own")
    models: dict[str, Found] = {}
    networks: dict[str, Found] = {}
    for found in files.values():
        rate = found.get("fp16_matmul_tflops")
        for name, part in found.get("models", {}).items():  # files by name: of a part in several the last counts
            models[name] = {**models.get(name, {}), **part, "rate": rate}
        networks |= {name: part for name, part in found.get("networks", {}).items() if "volume_ms" in part}
    order = sorted(networks, key=lambda name: (_GROUPS.index(networks[name]["group"]), networks[name]["volume_ms"]))
    environment = next(iter(files.values()))["environment"]
    return GpuResults(environment, models, {name: networks[name] for name in order})


def best_device_ms(model: Found) -> tuple[float, str] | None:
    """Shortest device time of encoder and flow a volume, and how it was reached."""
    return min(
        ((row["device_ms"]["encoder"] + row["device_ms"]["flow"], how) for how, row in _pipelines(model)), default=None
    )


def _pipelines(model: Found) -> Iterator[tuple[str, Found]]:
    """Every timed way through the CUDA pipeline."""
    for kind, part in _kinds(model).items():
        for variant, row in part.get("variants", {}).items():
            if "device_ms" in row:
                yield f"{kind}: {variant}", row
    for size, row in model.get("pipeline_by_batch", {}).items():
        if "device_ms" in row:
            yield f"{row['kind']}: {size} slices a batch", row


def _kinds(model: Found) -> dict[str, Found]:
    """Name what computes in the CUDA pipeline."""
    over = model.get("pipeline_over_onnxruntime", {})
    return {
        "TensorRT": model.get("tensorrt") or {},
        **model.get("pipeline_over_torch", {}),
        **{f"ONNX Runtime, {layout}": part for layout, part in over.items()},
    }


def chart_rows(results: GpuResults) -> list[dict[str, Any]]:
    """Device times of a volume in ms, as `charts.bars` takes them."""
    ours = {name: best_device_ms(model) for name, model in results.models.items()}
    rows = [{"method": name, "group": "slice pipeline", "ms": best[0]} for name, best in ours.items() if best]
    return rows + [
        {"method": name, "group": found["group"], "ms": found["volume_ms"]} for name, found in results.networks.items()
    ]


def gpu_page(results: GpuResults, *, name: str, ratio: float) -> str:
    """Markdown of all that was measured.

    Parameters
    ----------
    name : of the file
    ratio : how many times longer a 3D network must take to confirm the claim
    """
    return "\n\n".join(_parts(results, name, ratio)) + "\n"


def _parts(results: GpuResults, name: str, ratio: float) -> Iterator[str]:
    gpu, packages = results.environment["gpu"], results.environment["packages"]
    versions = [f"{one} {packages[one]}" for one in ("torch", "onnxruntime-gpu", "cuda-bindings") if one in packages]
    yield "# Performance on a GPU"
    yield (
        f"Measured on {gpu['name']}, driver {gpu['driver']}, {results.environment['cpu']} with "
        f"{results.environment['cores']} cores, {', '.join(versions)}, with `scripts/gpu_suite`; this page is made by "
        f"`ssn-bench gpu-page RESULTS -o docs/{name} --force`. [gpu.md](gpu.md) says how it is measured. All weights "
        "are random: speed does not depend on them."
    )
    if results.networks and results.models:
        yield from _against(results, name, ratio)
    for model, found in results.models.items():
        yield f"## {model}"
        if _has_roof(found):
            yield _summary(found)
        yield _ways(found)
        yield from _profile(found)
        if "problem" in (found.get("engines") or {}):
            yield f"TensorRT: {found['engines']['problem'].split('; and built for')[0]}"


def _against(results: GpuResults, name: str, ratio: float) -> Iterator[str]:
    ours = {model: best for model, found in results.models.items() if (best := best_device_ms(found))}
    yield "## Against 3D networks"
    own = "; ".join(f"{model} {ms:.2f} ms ({how})" for model, (ms, how) in ours.items())
    yield (
        f"Device time of a volume, by CUDA events: encoder and flow of {own}; of a 3D network the fastest way that was "
        'found. Both in half precision, with CUDA graphs, their input on the device. "Eager" is the network without a '
        "compiler: the least of its times in half precision, in either memory layout, launched or as a CUDA graph. "
        "Slice pipelines compute what has brain in it, 3D networks see the whole box. In the "
        f"last columns: how many times longer the 3D network takes, and whether that is {ratio:g} times."
    )
    yield f"![Device time of a volume]({Path(name).stem}.png)"
    rows = []
    for network, found in results.networks.items():
        eager, compiled = _fastest(found, compiled=False), _fastest(found, compiled=True)
        times = [found["volume_ms"] / ms for ms, _ in ours.values()]
        verdicts = [f"{time:.2f}x: {'holds' if time >= ratio else 'does not hold'}" for time in times]
        work = number(found["tflop_a_run"] * found["runs"])
        rows.append([network, found["group"], work, number(eager), number(compiled), *verdicts])
    yield markdown_table(("network", "group", "TFLOP", "eager, ms", "compiled, ms", *ours), rows)


def _fastest(network: Found, *, compiled: bool) -> float | None:
    """Milliseconds of a volume, launched or as a graph."""
    ways = [way for how, way in network["ways"].items() if ("compiled" in how) == compiled]
    times = [
        row["median_ms"] for way in ways for row in way.values() if isinstance(row, Mapping) and "median_ms" in row
    ]
    return min((ms * network["runs"] for ms in times), default=None)


def _summary(model: Found) -> str:
    flops, rate = model["flops"]["volume"] / 1e12, model["rate"]
    roof = flops / rate * 1000
    words = [
        f"{flops:.3g} TFLOP a volume: {roof:.3g} ms at the {rate:g} TFLOP/s that one large FP16 matrix product reached."
    ]
    if best := best_device_ms(model):
        words.append(f"The shortest device time is {best[0]:.2f} ms ({best[1]}), {best[0] / roof:.2f} times that.")
    for kind, part in _kinds(model).items():
        rows = {name: row for name, row in part.get("variants", {}).items() if "volume" in row}
        times = {name: row["volume"]["median_ms"] for name, row in rows.items()}
        if {"graphs", "streams and graphs", "neither"} <= set(times):
            one, both, none = (times[name] for name in ("graphs", "streams and graphs", "neither"))
            words.append(
                f"{kind}: overlapped streams bring a volume from {one:.2f} to {both:.2f} ms ({one / both:.2f}x), "
                f"streams and graphs together from {none:.2f} ms ({none / both:.2f}x)."
            )
        if "map_z" in (drift := part.get("drift", {})):
            words.append(
                f"Its map differs from the CPU's in FP32 by {drift['map_z']:.4f} z at most, Dice of both masks "
                f"{drift['dice']:.4f}."
            )
        if "volume" in part.get("end_to_end", {}):
            words.append(f"From file to map it takes {_from_file(part)}.")
    words += _memory_by_batch(model)
    for key, name in _ONNX_RUNTIME.items():
        if "peak_memory_mb" in (plain := model.get(key) or {}):
            words.append(
                f"{name} takes {plain['peak_memory_mb']:.0f} MB of the GPU at its height; from file to map "
                f"{_from_file(plain)}."
            )
    return " ".join(words)


def _from_file(part: Found) -> str:
    """Time from file to map, and of its stages."""
    times = part["end_to_end"]["stages_ms"]
    stages = ", ".join(f"{name.replace('_', ' ')} {ms:.0f}" for name, ms in times.items() if ms >= 0.5)
    return f"{part['end_to_end']['volume']['median_ms']:.0f} ms ({stages})"


def _memory_by_batch(model: Found) -> Iterator[str]:
    """Say what of the GPU's memory the pipeline takes, by slices a batch and by volumes, where that was measured."""
    sizes = []
    for size, row in model.get("pipeline_by_batch", {}).items():
        peaks = [value for value in row.get("peak_memory_mb", {}).values() if isinstance(value, float)]
        if len(peaks) > 1:
            sizes.append(f"{peaks[0]:.0f} MB with {size} slices a batch ({peaks[-1]:.0f} MB for four volumes in a row)")
    if sizes:
        yield f"The CUDA pipeline takes, with its weights: {', '.join(sizes)}."


def _ways(model: Found) -> str:
    """Tell each way to compute a volume, from an array on the host to an array on the host."""
    ways = {f"torch, {name}": row for name, row in model.get("torch", {}).items()}
    ways |= {name: model[key] for key, name in _ONNX_RUNTIME.items() if model.get(key)}
    ways |= {f"CUDA pipeline, {name}": row for name, row in _pipelines(model)}
    ways |= {
        f"CUDA pipeline, {kind}": part
        for kind, part in _kinds(model).items()
        if "problem" in part and kind != "TensorRT"
    }
    stages = [f"{stage.replace('_', ' ')}, ms" for stage in _STAGES]
    header = ("way", "volume, ms", "quartiles", *stages, "of the matrix product's rate")
    return markdown_table(header, ([name, *_cells(row, model)] for name, row in ways.items()))


def _cells(row: Found, model: Found) -> list[str]:
    if "volume" not in row:
        return [str(row.get("problem", "-")), *"------"]
    spread, stages = row["volume"], row.get("device_ms", {})
    return [
        f"{spread['median_ms']:.2f}",
        f"{spread['low_ms']:.2f} to {spread['high_ms']:.2f}",
        *(f"{stages[stage]:.3f}" if stage in stages else "-" for stage in _STAGES),
        _share(stages["encoder"] + stages["flow"] if stages else spread["median_ms"], model),
    ]


def _has_roof(model: Found) -> bool:
    return "volume" in model.get("flops", {}) and isinstance(model["rate"], float)


def _share(ms: float, model: Found) -> str:
    """Rate at which a volume's FLOPs were done in a time, of the one that a large matrix product reached."""
    if not _has_roof(model):
        return "-"
    return f"{100 * model['flops']['volume'] / (ms / 1000) / (model['rate'] * 1e12):.1f} %"


def _profile(model: Found) -> Iterator[str]:
    """Where the time of the fastest way goes, of those that were profiled."""
    best = best_device_ms(model)
    kind, variant = best[1].split(": ") if best else ("", "")
    by_batch = model.get("pipeline_by_batch", {}).get(variant.split(" ")[0], {})
    profile = by_batch.get("profile") or _kinds(model).get(kind, {}).get("profile", {})
    if "kernels" not in profile:
        return
    yield f"Where the {profile['kernels_ms']:.2f} ms of its kernels and copies go, the longest first:"
    rows = [
        [f"`{one['name'][:_NAME]}`", number(one["calls"]), f"{one['ms']:.3f}", f"{100 * one['share']:.0f} %"]
        for one in profile["kernels"][:_SHOWN_KERNELS]
    ]
    yield markdown_table(("kernel", "calls", "ms", "share"), rows)
