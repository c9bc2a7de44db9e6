"""Reports as text, Markdown or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fspad_bench.analysis.explain import Report, as_json, conclusions
from fspad_bench.analysis.tables import Table, tables
from fspad_bench.benchmark.render import finite
from fspad_bench.util.grid import grid
from fspad_bench.util.terminal import visible


def render(reports: Sequence[Report], style: str) -> str:
    """Return reports in a style: `text`, `markdown` or `json`."""
    if style == "json":
        every = [as_json(report) for report in reports]
        # plain ASCII, which every terminal and every pipe takes
        return json.dumps({"explanations": finite(every)}, indent=2, allow_nan=False)
    return "\n\n".join(_report(report, is_markdown=style == "markdown") for report in reports)


def _report(report: Report, *, is_markdown: bool) -> str:
    title = visible(report.group.title)
    parts = [f"**{title}**" if is_markdown else title]
    for table in tables(report.explanations):
        parts.append(f"{table.name}\n\n{_grid(table, is_markdown=is_markdown)}")
    for lines in (_gaps(report), _sentences(report)):
        if lines:
            parts.append("\n".join(map(visible, lines)))
    return "\n\n".join(parts)


def _grid(table: Table, *, is_markdown: bool) -> str:
    header = ["task", "decoder", *table.header]
    sides = ["left", "left", *["right"] * len(table.header)]
    return grid(table.body, header, is_markdown=is_markdown, sides=sides)


def _gaps(report: Report) -> list[str]:
    """Return what is missing, a line a gap, with the decoders that it concerns."""
    decoders: dict[str, dict[str, None]] = {}
    for explanation in report.explanations:
        if not explanation.case.is_vanilla:
            for gap in explanation.gaps:
                decoders.setdefault(gap, {})[explanation.case.decoder] = None
    return [f"{', '.join(names)}: {gap}" for gap, names in decoders.items()]


def _sentences(report: Report) -> list[str]:
    concluding = conclusions(report)
    tasks = {comparison.task for comparison in concluding}
    return [
        f"{comparison.task}: {comparison.sentence}" if len(tasks) > 1 else comparison.sentence
        for comparison in concluding
    ]
