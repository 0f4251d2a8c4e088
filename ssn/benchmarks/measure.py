"""Measuring: warm-up, interleaved rounds, spread, intervals of ratios, and where it was measured."""

from __future__ import annotations

import math
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssn import __version__
from ssn.core.errors import SsnError
from ssn.core.volume import read_volume
from ssn.runtime.machine import TENSORRT_MODULES, cores, cpu_name, look, package_version

_PACKAGES = (
    "numpy",
    "scipy",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "timm",
    "monai",
    "anomalib",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
    "openvino",
)
_RESAMPLES = 2000
_MATMUL_SIZE = 2048
FEWEST_ROUNDS = 3  # with fewer, an interval says nothing

Samples = dict[str, list[float]]
Tell = Callable[[str, int, int], None]  # what is being done, step, steps
Verdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True)
class Spread:
    """Times of repeated runs in milliseconds: the median, the middle half's ends, slow runs, and the extremes."""

    median_ms: float
    low_ms: float
    high_ms: float
    p90_ms: float
    p99_ms: float
    best_ms: float
    worst_ms: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Summarise times in seconds."""
        low, median, high, p90, p99 = (float(v) * 1000 for v in np.percentile(seconds, (25, 50, 75, 90, 99)))
        return cls(median, low, high, p90, p99, min(seconds) * 1000, max(seconds) * 1000, len(seconds))

    def as_json(self) -> dict[str, float | int]:
        """Plain values, rounded to a microsecond."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Ratio:
    """How many times larger one measured quantity is than another, with its interval.

    Attributes
    ----------
    value : ratio of the medians
    low, high : ends of the interval
    """

    value: float
    low: float
    high: float

    @classmethod
    def bootstrap(cls, larger: Sequence[float], smaller: Sequence[float]) -> Ratio:
        """95 % percentile bootstrap (Efron and Tibshirani, 1993) of paired rounds.

        Rounds are drawn and not runs, because what disturbs a round disturbs both. With three rounds it is about the
        range of their ratios.
        """
        a, b = np.asarray(larger, float), np.asarray(smaller, float)
        if a.shape != b.shape or len(a) < FEWEST_ROUNDS:
            raise ValueError(f"{a.size} and {b.size} rounds: at least {FEWEST_ROUNDS} pairs are needed")
        drawn = np.random.default_rng(0).integers(0, len(a), (_RESAMPLES, len(a)))
        low, high = np.percentile(np.median(a[drawn], 1) / np.median(b[drawn], 1), (2.5, 97.5))
        return cls(float(np.median(a) / np.median(b)), float(low), float(high))

    @classmethod
    def extremes(cls, larger: Sequence[float], smaller: Sequence[float]) -> Ratio:
        """Ratio of quantities that hardly vary, such as memory: the interval is what their extremes allow."""
        value = float(np.median(larger) / np.median(smaller))
        return cls(value, min(larger) / max(smaller), max(larger) / min(smaller))

    def verdict(self, wanted: float) -> Verdict:
        """Whether the quantity is `wanted` times larger: undecided if the interval includes that value."""
        if self.low < wanted <= self.high or not (math.isfinite(self.low) and math.isfinite(self.high)):
            return "undecided"
        return "holds" if self.low >= wanted else "does not hold"

    def as_json(self) -> dict[str, float]:
        """Plain values, rounded."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def timed_rounds(
    runs: Mapping[str, Callable[[], Mapping[str, float] | object]],
    *,
    rounds: int,
    warm_up: int = 0,
    tell: Callable[[int, int], None] = lambda step, steps: None,
) -> dict[str, Samples]:
    """Run each once a round, so that a machine that slows down slows all of them.

    Parameters
    ----------
    runs : name -> what to do; it must not return before its work is done. Where it returns a mapping, these are
        seconds that it measured of its own parts.
    warm_up : rounds that are not kept
    tell : called after each round with how many are done, and how many there are

    Returns
    -------
    name -> part -> seconds of each round; the part "total" is what the clock said
    """
    found: dict[str, Samples] = {name: {} for name in runs}
    for index in range(warm_up + rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            parts = run()
            total = time.perf_counter() - start
            if index >= warm_up:
                for part, seconds in {**(parts if isinstance(parts, Mapping) else {}), "total": total}.items():
                    found[name].setdefault(part, []).append(seconds)
        tell(index + 1, warm_up + rounds)
    return found


def step_times(samples: Mapping[str, Samples]) -> dict[str, Any]:
    """Summarise "before" and "after" of `timed_rounds`, and how many times faster the latter is, for a step's row."""
    before, after = (samples[name]["total"] for name in ("before", "after"))
    return {
        "before": Spread.of(before).as_json(),
        "after": Spread.of(after).as_json(),
        "faster": Ratio.bootstrap(before, after).as_json(),
    }


def seconds_of(run: Callable[[], object]) -> float:
    """Time one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def while_it_runs(name: str, run: Callable[[], object], failed: dict[str, str]) -> Callable[[], None]:
    """Make `run` do nothing once it failed, with the reason in `failed`: the others of its rounds go on."""

    def guarded() -> None:
        if name not in failed:
            try:
                run()
            except Exception as error:  # engines raise what they like, for example for want of memory
                failed[name] = reason_of(error)

    return guarded


def reason_of(error: Exception) -> str:
    """Say on one line what went wrong; of an error that is not ours with its type."""
    if isinstance(error, SsnError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def interleaved(runs: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 3) -> dict[str, Spread]:
    """Time each run once a round; see `timed_rounds`."""
    samples = timed_rounds(runs, rounds=rounds, warm_up=warm_up)
    return {name: Spread.of(parts["total"]) for name, parts in samples.items()}


@dataclass
class Clock:
    """Shares an amount of time equally among comparisons whose cost is not known before.

    Attributes
    ----------
    minutes : for all of them; None: as long as it takes
    left : comparisons that are still to come
    """

    minutes: float | None
    left: int

    def __post_init__(self) -> None:
        self._end = math.inf if self.minutes is None else time.perf_counter() + 60 * self.minutes

    def share(self) -> float:
        """Seconds that the next comparison may take."""
        seconds = max(self._end - time.perf_counter(), 0.0) / max(self.left, 1)
        self.left -= 1
        return seconds


def matmul_rate_cpu() -> float:
    """FLOP/s of one FP32 matrix product with numpy: the roof that times are held against."""
    a = np.random.default_rng(0).random((_MATMUL_SIZE, _MATMUL_SIZE), np.float32)
    product = np.empty_like(a)
    seconds = timed_rounds({"product": lambda: np.matmul(a, a, out=product)}, rounds=5, warm_up=1)
    return 2 * _MATMUL_SIZE**3 / float(np.median(seconds["product"]["total"]))


def environment(*, threads: int | None = None, scan: Path | None = None) -> dict[str, Any]:
    """Where and with what was measured: CPU, GPU, driver, versions, commit, threads, and the input's hash."""
    machine = look()
    found: dict[str, Any] = {
        "ssn": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": cores(),
        "gpu": asdict(machine.device) if machine.device else None,
        "tensorrt_modules": {name: machine.modules[name] for name in TENSORRT_MODULES},
        "onnxruntime_providers": list(machine.providers),
        "packages": package_versions(),
    }
    if threads is not None:
        found["threads"] = threads
    if scan is not None:
        volume = read_volume(scan)
        found["input"] = {"sha256": volume.sha256, "shape": list(volume.data.shape)}
    return found


def package_versions() -> dict[str, str]:
    """Versions of the packages that compute, of those that are installed."""
    return {name: known for name in _PACKAGES if (known := package_version(name))}


def _commit(root: Path = Path(__file__).parents[2]) -> str | None:
    """Commit of the source tree, with "+" where it was changed since; None outside of one."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None  # installed somewhere inside of another repository
        return git("describe", "--always", "--dirty=+", "--exclude=*") or None
    except (OSError, subprocess.SubprocessError):
        return None
