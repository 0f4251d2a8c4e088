"""The claim "3.3 times faster and smaller than 3D networks", held against what was measured, baseline by baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

from ssn.benchmarks.measure import Ratio, Verdict
from ssn.benchmarks.results import Kind, rows_of
from ssn.core.errors import ResultsError

Quantity = Literal["net", "file", "memory"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
_KIND: dict[Quantity, Kind] = {"net": "latency", "file": "latency", "memory": "memory"}


@dataclass(frozen=True)
class Finding:
    """One baseline, one quantity.

    Attributes
    ----------
    ratio : how many times the baseline takes what the slice pipeline takes; None where nothing can be said
    why : what stands in the way of a ratio
    """

    engine: str
    method: str
    group: str
    quantity: Quantity
    wanted: float
    ratio: Ratio | None
    why: str = ""

    @property
    def verdict(self) -> Verdict:
        """What follows for the claim."""
        return "undecided" if self.ratio is None else self.ratio.verdict(self.wanted)

    def line(self) -> str:
        """Text for people."""
        if self.ratio is None:
            return f"{self.verdict}: {self.why}"
        return f"{self.ratio.value:.2f}x [{self.ratio.low:.2f}, {self.ratio.high:.2f}]: {self.verdict}"


def check_claim(
    results: Mapping[str, Mapping[str, Any]],
    model: str,
    *,
    ratio: float,
    memory_ratio: float,
    against: Sequence[str] = (),
    engines: Sequence[str] = (),
) -> list[Finding]:
    """Compare a slice pipeline with each baseline that was measured.

    Parameters
    ----------
    model : the slice pipeline
    ratio, memory_ratio : how many times faster and smaller it is said to be
    against : baselines that the claim is about; all if none is named
    engines : the same

    Raises
    ------
    ResultsError
        If a baseline or engine that the claim is about was not measured, or nothing was.
    """
    for what, named in (("engine", engines), ("baseline", against)):
        known = _names(results, what)
        if missing := [name for name in named if name not in known]:
            there = ", ".join(known) or "none"
            raise ResultsError(f"{', '.join(missing)}: no such {what} in the results; there are: {there}")
    findings = []
    for quantity in QUANTITIES:
        wanted = memory_ratio if quantity == "memory" else ratio
        rows = list(rows_of(results, _KIND[quantity]))
        order = list(dict.fromkeys(row.get("engine") for row in rows))
        # Of each engine those that were timed once come last: nothing is decided by them.
        for row in sorted(rows, key=lambda row: (order.index(row.get("engine")), "once_ms" in row)):
            if row.get("group") in (None, "slice pipeline"):
                continue
            if (against and row["method"] not in against) or (engines and row["engine"] not in engines):
                continue
            findings.append(_finding(row, model, quantity, wanted))
    found = {name for finding in findings for name in (finding.method, finding.engine)}
    if missing := [name for name in (*engines, *against) if name not in found]:
        raise ResultsError(f"{', '.join(missing)}: not measured with what else was named; name less")
    if not findings:
        raise ResultsError("the results hold no comparison; make one with ssn-bench latency or memory")
    return findings


def holds(
    findings: Sequence[Finding],
    quantities: Sequence[Quantity],
    against: Sequence[str] = (),
    engines: Sequence[str] = (),
) -> bool:
    """Whether the claim holds for every baseline.

    Parameters
    ----------
    against, engines : baselines and engines that it is about, each with each; a quantity that was measured in some
        engines alone is about those, if none is named

    Raises
    ------
    ResultsError
        If a quantity of one of them was not measured: of nothing everything would hold.
    """
    for quantity in quantities:
        found = {(one.method, one.engine) for one in findings if one.quantity == quantity}
        meant = {*engines, *(engine for _, engine in found)}
        known = [(one.method, one.engine) for one in findings if one.engine in meant or not found]
        about = dict.fromkeys([*known, *product(against, engines)])
        missing = [f"{method} in {engine}" for method, engine in about if (method, engine) not in found]
        if missing:
            what = ", ".join(missing) if found else "all"
            raise ResultsError(f"{quantity} ({what}): was not measured; ssn-bench latency or memory does")
    return all(finding.verdict == "holds" for finding in findings if finding.quantity in quantities)


def _finding(row: Mapping[str, Any], model: str, quantity: Quantity, wanted: float) -> Finding:
    found = row.get("against", {}).get(model, {}).get(quantity)
    if found is not None:
        ratio, why = Ratio(**found), ""
    else:
        ratio = None
        if "once_ms" in row:
            why = f"timed once, {row['once_ms'] / 1000:.1f} s a volume: more rounds did not fit into the time given"
        else:
            why = str(row.get("problem", f"{model} was not measured with it"))
    return Finding(row["engine"], row["method"], row["group"], quantity, wanted, ratio, why)


def _names(results: Mapping[str, Mapping[str, Any]], what: str) -> list[str]:
    key = "method" if what == "baseline" else "engine"
    rows = (*rows_of(results, "latency"), *rows_of(results, "memory"))
    return list(dict.fromkeys(row[key] for row in rows if row.get("group") != "slice pipeline" and key in row))
