"""A report's sections as Markdown, and as one HTML file that needs nothing else."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from ssn.benchmarks.pages.tables import markdown_table
from ssn.benchmarks.results import Results

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #212529; max-width: 84rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; border-bottom: 1px solid #dee2e6; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
table { border-collapse: collapse; font-size: .86rem; margin: .6rem 0; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid #e9ecef; vertical-align: top; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td:first-child, td:not(.text) { white-space: nowrap; }
.charts { display: flex; flex-wrap: wrap; align-items: flex-end; gap: 0 1.5rem; }
svg { max-width: 100%; height: auto; margin: .6rem 0; }
.scroll { overflow-x: auto; } .note { color: #495057; font-size: .86rem; }
"""


@dataclass
class Section:
    """A heading and what stands below it, in this order."""

    title: str
    level: int = 2
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    charts: list[str] = field(default_factory=list)


def as_markdown(sections: Sequence[Section], results: Results, title: str) -> str:
    """Render text and tables, and the raw data at the end."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"{'#' * section.level} {section.title}")
        if section.text:
            parts.append(section.text)
        if section.rows:
            parts.append(markdown_table(section.header, section.rows))
    parts.append(f"<details><summary>Raw data</summary>\n\n```json\n{json.dumps(results)}\n```\n\n</details>")
    return "\n\n".join(parts) + "\n"


def as_html(sections: Sequence[Section], results: Results, title: str) -> str:
    """Render one file that needs nothing else, raw data inside as the element "results"."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        parts.append(f"<h{section.level}>{html.escape(section.title)}</h{section.level}>")
        if section.text:
            parts.append(f'<p class="note">{html.escape(section.text)}</p>')
        if section.charts:
            parts.append(f'<div class="charts">{"".join(section.charts)}</div>')
        if section.rows:
            parts.append(_html_table(section))
    data = json.dumps(results).replace("</", "<\\/")
    parts.append(f'<script type="application/json" id="results">{data}</script>')
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _html_table(section: Section) -> str:
    words = {"accuracy", "group", "note", "engine", "value", "lesions", "network", "file to file", "memory"}
    text = [name in words for name in section.header]

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = (' class="text"' if words else "" for words in text)
        return "<tr>" + "".join(
            f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
        ) + "</tr>"  # fmt: skip

    body = "\n".join(line("td", row) for row in section.rows)
    return f'<div class="scroll"><table>\n{line("th", section.header)}\n{body}\n</table></div>'
