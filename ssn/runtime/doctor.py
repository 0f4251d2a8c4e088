"""What this machine and a bundle have, and what would run: the facts behind `--doctor`. It never raises."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssn import __version__
from ssn.core.bundle import Bundle, load_bundle
from ssn.core.engines import find_engines
from ssn.core.errors import BundleError
from ssn.runtime.choose import engine_problem, in_order, options
from ssn.runtime.cpu_choice import Comparison, compare_on_cpu
from ssn.runtime.machine import Machine, cores, cpu_name, look


def diagnose(folder: Path, machine: Machine | None = None) -> dict[str, Any]:
    """Facts about this machine and a bundle, ready for JSON.

    `would_run` is what `--backend auto` takes; None if the bundle is damaged or nothing runs.
    """
    machine = machine or look()
    bundle, problem = None, None
    try:
        bundle = load_bundle(folder)
    except BundleError as error:
        problem = str(error)
    files = _files(bundle) if bundle else {}
    damaged = [state for state in files.values() if state != "ok"]
    found = list(options(bundle, machine, verify=True)) if bundle and not damaged else []
    comparison = None

    def compare() -> Comparison | None:
        nonlocal comparison
        comparison = compare_on_cpu(bundle, machine, None) if bundle else None
        return comparison

    able = next((option.label for option in in_order(found, compare) if option.problem is None), None)
    return {
        "ssn": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": {
            "name": cpu_name(),
            "cores": cores(),
        },
        "gpu": asdict(machine.device) if machine.device else None,
        "no_gpu": machine.no_device or None,
        "modules": dict(machine.modules),
        "onnxruntime": {"version": machine.onnxruntime, "providers": list(machine.providers)},
        "bundle": {
            "folder": str(folder),
            "name": bundle.spec.name if bundle else None,
            "sha256": bundle.digest if bundle else None,
            "problem": problem or (damaged[0] if damaged else None),
            "files": files,
        },
        "engines": _engines(bundle, machine) if bundle else [],
        "ways": [{"way": option.label, "problem": option.problem} for option in found],
        "on_cpu": comparison.line() if comparison else None,
        "would_run": able,
    }


def _files(bundle: Bundle) -> dict[str, str]:
    states = {}
    for name in bundle.manifest["files"]:
        try:
            bundle.read(name)
            states[name] = "ok"
        except BundleError as error:
            states[name] = str(error)
    return states


def _engines(bundle: Bundle, machine: Machine) -> list[dict[str, Any]]:
    return [
        {"engine": entry.folder.name, "problem": engine_problem(entry, bundle, machine, verify=True)}
        for entry in find_engines(bundle)
    ]


def as_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Turn the report into lines for people: (what, what is said of it)."""
    gpu, ort, bundle = report["gpu"], report["onnxruntime"], report["bundle"]
    lines = [
        ("ssn", f"{report['ssn']}, Python {report['python']}, {report['system']}"),
        ("CPU", f"{report['cpu']['name']}, {report['cpu']['cores']} cores"),
        (
            "GPU",
            f"{gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['memory_bytes'] / 1e9:.0f} GB, "
            f"driver {gpu['driver']}"
            if gpu
            else f"none: {report['no_gpu']}",
        ),
        *((name, version or "not installed") for name, version in report["modules"].items()),
        (
            "onnxruntime",
            f"{ort['version']}, {', '.join(ort['providers'])}" if ort["version"] else "not installed, or broken",
        ),
    ]
    if bundle["problem"]:
        lines.append(("bundle", f"PROBLEM: {bundle['problem']}"))
    else:
        lines.append(("bundle", f"{bundle['name']}, {len(bundle['files'])} files, hashes verified: {bundle['folder']}"))
    lines += [("engine", engine["problem"] or f"{engine['engine']}: may run here") for engine in report["engines"]]
    for way in report["ways"]:
        lines.append(("way", f"{way['way']}: {way['problem'] or 'can run'}"))
    if report["on_cpu"]:
        lines.append(("on the CPU", report["on_cpu"]))
    lines.append(("would run", report["would_run"] or "nothing: see the problem above"))
    return lines
