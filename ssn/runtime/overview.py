"""What is written of a cohort beside its volumes' outputs: the table of scores, and a page to look through them."""

from __future__ import annotations

import csv
import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ssn.core.atomic import atomic_path, printable, write_text_atomic
from ssn.core.bundle import INTENDED_USE, Bundle
from ssn.runtime.jobs import Job, Outcome
from ssn.runtime.outputs import output_paths
from ssn.runtime.own import PAGE_MARK, TABLE_COLUMNS, remove_own

TABLE_FILE, PAGE_FILE = "scores.csv", "index.html"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #e8e8ec; background: #0d0e11; margin: 2rem auto; max-width: 110rem;
  padding: 0 1.5rem; }
h1 { font-size: 1.4rem; margin-bottom: .3rem; } h2 { font-size: 1.05rem; margin: 2.5rem 0 .2rem; }
a { color: #46dcff; } p { color: #a2a4ad; margin: .2rem 0 1rem; }
table { border-collapse: collapse; } th { color: #a2a4ad; font-weight: normal; }
th, td { padding: .15rem 1.4rem .15rem 0; text-align: right; border-bottom: 1px solid #26282e; }
th:first-child, td:first-child { text-align: left; } .abnormal { color: #fac83c; }
img { max-width: 100%; height: auto; }
"""


def overview_paths(folder: Path, *, pictures: bool) -> list[Path]:
    """Paths of the table and, where volumes have pictures, of the page."""
    return [folder / TABLE_FILE, *([folder / PAGE_FILE] if pictures else [])]


def remove_overview(folder: Path) -> None:
    """Remove an older table and page, if they are there and ours."""
    for path in overview_paths(folder, pictures=True):
        remove_own(path)


def write_overview(
    folder: Path, outcomes: Sequence[Outcome], bundle: Bundle, *, pictures: bool, overwrite: bool
) -> None:
    """Write `scores.csv` and, where volumes have pictures, `index.html`: highest score first, failures last.

    Raises
    ------
    OutputError
        If one exists and is not to be overwritten, or can't be written.
    """
    ranked = sorted(outcomes, key=lambda one: -one.record["volume"]["score"] if one.record else float("inf"))
    _write_table(folder / TABLE_FILE, ranked, overwrite=overwrite)
    if pictures:
        write_text_atomic(folder / PAGE_FILE, _page(ranked, bundle), overwrite=overwrite)
    elif overwrite:
        remove_own(folder / PAGE_FILE)


def _row(outcome: Outcome) -> dict[str, Any]:
    row = {"file": printable(outcome.job.path.name), "seconds": round(outcome.seconds, 2)}
    if outcome.record is None:
        return row | {"error": outcome.error}
    volume, found = outcome.record["volume"], outcome.record["map"]
    return row | {
        "score": volume["score"],
        "p_value": volume["p_value"],
        "abnormal": int(volume["abnormal"]),
        "above_threshold_ml": found["above_threshold_ml"],
        "highest_z": found["highest_z"],
    }


def _write_table(path: Path, ranked: Sequence[Outcome], *, overwrite: bool) -> None:
    with (
        atomic_path(path, overwrite=overwrite) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.DictWriter(stream, TABLE_COLUMNS)
        writer.writeheader()
        writer.writerows(_row(outcome) for outcome in ranked)


def _page(ranked: Sequence[Outcome], bundle: Bundle) -> str:
    """One page that needs nothing but the pictures beside it."""
    done = [(outcome.job, outcome.record) for outcome in ranked if outcome.record is not None]
    failed = [outcome for outcome in ranked if outcome.record is None]
    above = sum(record["volume"]["abnormal"] for _, record in done)
    title = f"{len(done)} volumes, {above} above the range of healthy volumes"
    title += f"; {len(failed)} not computed" if failed else ""
    calibration = bundle.calibration
    about = (
        f"Highest score first. Model {printable(bundle.spec.name)} ({bundle.spec.modality}); above is a volume score "
        f"of more than {calibration.volume_threshold:.2f}, by {calibration.healthy_scores.size} healthy volumes. "
        f"{INTENDED_USE}"
    )
    header = ("volume", "score", "p", "ml above threshold", "highest z", "warnings")
    parts = [
        f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(about)}</p>",
        "<table>\n<tr>" + "".join(f"<th>{name}</th>" for name in header) + "</tr>",
        *(_line(number, job, record) for number, (job, record) in enumerate(done, 1)),
        "</table>",
        *(_section(number, job, record) for number, (job, record) in enumerate(done, 1)),
    ]
    if failed:
        parts.append("<h2>Not computed</h2>\n<ul>")
        parts += [f"<li>{html.escape(str(outcome.error))}</li>" for outcome in failed]
        parts.append("</ul>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{PAGE_MARK}\n'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _line(number: int, job: Job, record: dict[str, Any]) -> str:
    volume, found = record["volume"], record["map"]
    kind = ' class="abnormal"' if volume["abnormal"] else ""
    return (
        f'<tr{kind}><td><a href="#v{number}">{html.escape(printable(job.path.name))}</a></td>'
        f"<td>{volume['score']:.2f}</td><td>{volume['p_value']:.3f}</td>"
        f"<td>{found['above_threshold_ml']:.1f}</td><td>{found['highest_z']:.1f}</td>"
        f"<td>{len(record['input']['doubts']) or ''}</td></tr>"
    )


def _section(number: int, job: Job, record: dict[str, Any]) -> str:
    """Show a volume's doubts, files and picture, which says its scores itself."""
    paths = [quote(os.fsencode(path.name)) for path in output_paths(Path(), job.name)]
    files = ", ".join(
        f'<a href="{path}">{what}</a>' for path, what in zip(paths[:3], ("map", "mask", "JSON"), strict=True)
    )
    doubts = "".join(f"<p>Warning: {html.escape(doubt)}</p>\n" for doubt in record["input"]["doubts"])
    return (
        f'<h2 id="v{number}">{html.escape(printable(job.path.name))}</h2>\n{doubts}'
        f'<p>{files}</p>\n<img loading="lazy" src="{paths[3]}" alt="slices with the map laid over them">'
    )
