"""The page docs/performance.md, made from results: every number on it was measured by a command of this repository."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ssn.benchmarks.pages.tables import (
    accuracy_of,
    accuracy_table,
    claim_tables,
    cohort_table,
    markdown_table,
    number,
    step_table,
)
from ssn.benchmarks.results import Results, rows_of


def performance_page(
    results: Results,
    *,
    name: str,
    ratio: float,
    memory_ratio: float,
    accuracy: Mapping[str, Any] | None = None,
    ablation: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Markdown: where it was measured, the claim, each step that was tried, and cohorts; `name` is the file's."""
    return "\n\n".join(_parts(results, name, ratio, memory_ratio, accuracy, ablation)) + "\n"


def _parts(
    results: Results,
    name: str,
    ratio: float,
    memory_ratio: float,
    accuracy: Mapping[str, Any] | None,
    ablation: Sequence[Mapping[str, Any]],
) -> Iterator[str]:
    found = next(iter(results.values()))["environment"]
    commits = ", ".join(dict.fromkeys(str(result["environment"]["commit"]) for result in results.values()))
    yield "# Performance"
    made = f"ssn-bench performance RESULTS -o docs/{name} --force{' --ablation ABLATION' if ablation else ''}"
    yield (
        f"Measured on {found['cpu']}, {found.get('threads', found['cores'])} threads, commit {commits}, with "
        f"`ssn-bench` (`scripts/cpu_suite` runs all of it){_volume(results)}; this page is made by `{made}`. "
        f"[bench.md](bench.md) says how it is measured.{_layouts(results)}"
    )
    pipelines = [row for row in rows_of(results, "latency") if row.get("group") == "slice pipeline"]
    # Of a pipeline's engines the one whose accuracy is known speaks for it.
    models = {row["method"]: row for row in sorted(pipelines, key=lambda row: bool(row.get("accuracy")))}
    for model, row in models.items():
        yield f"## {model} against 3D networks"
        yield (
            "How many times longer, and larger, the 3D network is, with a 95 % interval; whether "
            f"{ratio:g} times in time and {memory_ratio:g} times in memory hold. {_accuracy(row, accuracy)}"
        )
        for table in claim_tables(results, model, ratio=ratio, memory_ratio=memory_ratio):
            yield markdown_table(table.header, table.rows)
    steps = step_table(results, ablation)
    if steps:
        yield f"## {steps.title}"
        yield (
            "Time from the file to the map, before and after each step, and what it does to accuracy. A step is in the "
            "product if it is faster and accuracy is kept: AUPRC falls by 0.005 at most, maps correlate with 0.999 or "
            "more, and the volume's score changes by 1 % at most. AUPRC is that of the model packaged at that commit, "
            f"the mean over {_lesioned(results)} synthetic volumes with lesions that the model was not made with; of "
            "steps that need another training, mean and spread over seeds at the ablation's scale; random weights have "
            "none."
        )
        yield markdown_table(steps.header, steps.rows)
    cohorts = cohort_table(results)
    if cohorts:
        yield f"## {cohorts.title}"
        yield "The goal: 90 % of the speed of the slowest part alone, which is decoding, computing or writing."
        yield markdown_table(cohorts.header, cohorts.rows)
    if accuracy is not None:
        table = accuracy_table(accuracy)
        yield f"## {table.title}"
        yield markdown_table(table.header, table.rows)


def _lesioned(results: Results) -> int:
    return max((row.get("auprc_volumes", 0) for row in rows_of(results, "variants")), default=0)


def _volume(results: Results) -> str:
    shape = results.get("latency", {}).get("volume")
    return f", on a volume of {' x '.join(map(str, shape))}" if shape else ""


def _layouts(results: Results) -> str:
    """Say that the two sides differ in memory layout, where they do."""
    if not any(row.get("engine") == "torch" for row in rows_of(results, "latency")):
        return ""
    return (
        " In engine `torch` the slice pipelines run channels-last, and the 3D networks in torch's default layout; in "
        "the other engines both sides have the same."
    )


def _accuracy(row: Mapping[str, Any], accuracy: Mapping[str, Any] | None) -> str:
    known = accuracy_of(row, accuracy)
    if not known:
        return f"Weights of {row['method']} and of all 3D networks are random here, so they have no accuracy."
    which = ", as packaged at that commit," if accuracy is None else ""
    return (
        f"Accuracy of {row['method']}{which} on held-out lesions: voxel AUROC {number(known['auroc'])}, AUPRC "
        f"{number(known['auprc'])}, Dice {number(known['dice'])}; 3D networks have random weights, so none."
    )
