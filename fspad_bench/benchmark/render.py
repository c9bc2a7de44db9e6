"""Rows as text, Markdown, LaTeX, CSV or JSON.

- Text, Markdown and LaTeX hold a table a setting, then the means over tasks, then the notes needed
  to read them. In LaTeX all but the tables are comments.
- CSV and JSON hold the rows alone, under the names of the contract (see `rows`).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from fspad_bench.benchmark.means import TaskGroup, over_tasks, place
from fspad_bench.benchmark.notes import notes_of
from fspad_bench.benchmark.record import VANILLA
from fspad_bench.benchmark.rows import Row
from fspad_bench.benchmark.titles import (
    Names,
    method,
    names_of,
    setting,
    title,
)
from fspad_bench.benchmark.verdict import shown_verdict
from fspad_bench.util.grid import booktabs, grid
from fspad_bench.util.terminal import visible, visible_lines

PERCENT = ("accuracy", "em", "exact_match", "acc")  # metrics shown with a percent sign
HEADER = (
    "decoder",
    "verdict",
    "tokens/step",
    "speedup (95%)",
    "end to end",
    "tokens/s",
    "first token",
)
LOOP_FREE = ("tokens/step, no loops", "speedup, no loops")  # only where an output loops
SPREAD = ("CV tokens/s", "CV tokens/step")  # only where the run was repeated
LOOP_FREE_FIGURES = ("tokens_per_step_without_loops", "speedup_without_loops")
MEANS = {
    "tokens/step": "tokens_per_step",
    "speedup": "speedup",
    "end to end": "speedup_end_to_end",
}
BOOKTABS = r"% \usepackage{booktabs}"
SIDES = ("left", "left", "right", "left", "right", "right", "right", "right")


def render(table: list[Row], style: str) -> str:
    """Return the rows in a style: `text`, `markdown`, `latex`, `csv` or `json`."""
    if style == "json":
        # plain ASCII, which every terminal and every pipe takes
        return json.dumps({"rows": finite(table)}, indent=2, allow_nan=False)
    if style == "csv":
        return _csv(table)
    names = names_of(table)
    parts = [_table(list(group), names, style) for _, group in groupby(table, key=setting)]
    parts += _means(table, names, style)
    notes = list(map(visible, notes_of(table, names)))
    if style == "latex":
        return "\n\n".join([BOOKTABS, *parts, "\n".join(f"% {note}" for note in notes)])
    return "\n\n".join([*parts, "\n".join(notes)])


def _titled(
    title: str,
    body: Sequence[Sequence[object]],
    header: Sequence[str],
    style: str,
    sides: Sequence[str] | None = None,
) -> str:
    """Return a table under its title."""
    title = visible(title)
    if style == "latex":
        return f"% {title}\n{booktabs(body, header, sides)}"
    return f"{title}\n\n{grid(body, header, is_markdown=style == 'markdown', sides=sides)}"


def _csv(table: list[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]) if table else [], lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({name: _cell(value) for name, value in finite(row).items()})
    return out.getvalue().rstrip("\n")


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value)
    return visible_lines(value) if isinstance(value, str) else value


def finite(value: Any) -> Any:
    """Return a value of JSON with None in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# the table of a setting


def _table(group: list[Row], names: Names, style: str) -> str:
    first = group[0]
    looping = any(row["looping"] for row in group)
    repeated = any(row["repeats"] > 1 for row in group)
    header = [*HEADER, first["metric"] or "score"]
    if looping:
        header[-1:-1] = LOOP_FREE
    if repeated:
        header[-1:-1] = SPREAD
    sides = [*SIDES, *["right"] * (len(header) - len(SIDES))]
    body = []
    for row in group:
        figures = _figures(row) + (_figures_without_loops(row) if looping else [])
        figures += _spread(row) if repeated else []
        body.append([_name(row, first, names), shown_verdict(row), *figures, _score(row)])
    heading = f"**{title(first)}**" if style == "markdown" else title(first)
    return _titled(heading, body, header, style, sides)


def _name(row: Row, first: Row, names: Names) -> str:
    """Return a decoder's name, with its number of prompts where that is not the title's."""
    name = names[method(row)]
    count = row["samples"]
    return name if count == first["samples"] else f"{name} ({count} prompts)"


def _figures(row: Row) -> list[str]:
    seconds = row["time_to_first_token"]
    return [
        _number(row["tokens_per_step"], ".2f"),
        _marked(row, "speedup", ".2f") + _interval(row),
        _marked(row, "speedup_end_to_end", ".2f"),
        _marked(row, "tokens_per_second", ".1f"),
        _number(seconds and 1000 * seconds, ".0f", " ms"),
    ]


def _figures_without_loops(row: Row) -> list[str]:
    return [
        _number(row["tokens_per_step_without_loops"], ".2f"),
        _marked(row, "speedup_without_loops", ".2f"),
    ]


def _spread(row: Row) -> list[str]:
    return [_number(row["tokens_per_second_cv"], ".1%"), _number(row["tokens_per_step_cv"], ".1%")]


def _marked(row: Row, name: str, form: str) -> str:
    """Return a figure that depends on the clock, marked where other work was running."""
    mark = "~" if row["noisy"] and row[name] is not None else ""
    return mark + _number(row[name], form)


def _interval(row: Row) -> str:
    if row["decoder"] == VANILLA or row["speedup"] is None:
        return ""
    if row["speedup_low"] is None:
        return "  [±?]"
    return f"  [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]"


def _score(row: Row) -> str:
    return _number(row["score"], ".1f", unit_of(row["metric"]))


def unit_of(metric: str | None) -> str:
    """Return the sign behind a metric's figures. lm-eval adds its filter's name to a metric's."""
    return "%" if metric and metric.partition(",")[0] in PERCENT else ""


def _number(value: float | None, form: str, unit: str = "") -> str:
    is_known = value is not None and math.isfinite(value)
    return f"{value:{form}}{unit}" if is_known else "-"


# means over tasks


def _means(table: list[Row], names: Names, style: str) -> list[str]:
    """Return a table of means for each place where several tasks were measured, each task weighing
    the same.

    A task measured twice at one place, with other data or to another length, counts in a mean of
    its own.
    """
    places: dict[str, list[Row]] = {}
    for row in table:
        places.setdefault(place(row), []).append(row)
    figures = dict(MEANS)
    if any(row["looping"] for row in table):
        figures |= dict(zip(LOOP_FREE, LOOP_FREE_FIGURES, strict=True))
    header = ["sampling", "decoder", "tasks", *figures]
    tables = []
    for where, here in places.items():
        groups = [group for group in over_tasks(here) if len(group.rows) > 1]
        body = [_mean_line(group, names, list(figures.values())) for group in groups]
        if body:
            title = f"mean of the tasks · {where}" if len(places) > 1 else "mean of the tasks"
            tables.append(_titled(title, body, header, style))
    return tables


def _mean_line(group: TaskGroup, names: Names, figures: Sequence[str]) -> list[Any]:
    means = [_mean(group.rows, name) for name in figures]
    return [group.sampling, names[method(group.rows[0])], len(group.rows), *means]


def _mean(group: list[Row], name: str) -> str:
    """Return the mean, or `-` unless every task has a value: a partial mean would be biased."""
    values = [row[name] for row in group]
    return _number(None if None in values else sum(values) / len(values), ".2f")
