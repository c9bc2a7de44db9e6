"""A comparison as text, Markdown or JSON.

What differs between the two sides beside their figures stands first. JSON holds `differences`,
`lines`, `only_a`, `only_b`, `tests` and `worse`; its names are a contract, as those of rows are.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fspad_bench.benchmark.changes import SAME, STEPS, UNTESTED, VERDICT, Line
from fspad_bench.benchmark.compare import Comparison
from fspad_bench.benchmark.paired import ALPHA, POWER
from fspad_bench.benchmark.record import PENALTIES
from fspad_bench.benchmark.render import finite, unit_of
from fspad_bench.benchmark.rows import Row
from fspad_bench.benchmark.titles import Names, distribution, method, names_of, place_of
from fspad_bench.util.grid import grid
from fspad_bench.util.terminal import visible

HEADER = ("row", "figure", "A", "B", "B/A (95%)", "p", f"seen at {POWER:.0%}", "")
SIDES = ("left", "left", "right", "right", "left", "right", "right", "left")
HASH = 64  # characters of a sha256
LONGEST = 60  # characters of a value
NAMED = 4  # rows of one side, in a note


def render(comparison: Comparison, style: str) -> str:
    """Return a comparison in a style: `text`, `markdown` or `json`."""
    if style == "json":
        return json.dumps(finite(_content(comparison)), indent=2, allow_nan=False)
    is_markdown = style == "markdown"
    matched = [line.match.a for line in comparison.lines]
    names = names_of([*matched, *comparison.only_a, *comparison.only_b])
    lines = [line for line in comparison.lines if _is_shown(line)]
    table = grid(
        [_cells(line, names) for line in lines], HEADER, is_markdown=is_markdown, sides=SIDES
    )
    parts = [_listed("what differs between A and B", _differences(comparison), is_markdown)]
    parts += [table, "\n".join(map(visible, _notes(comparison, names)))]
    return "\n\n".join(parts)


def _is_shown(line: Line) -> bool:
    """Whether a line is worth its place: verdicts and scores only where they differ."""
    return line.change is not None or line.a != line.b or line.state not in (SAME, UNTESTED)


def _listed(title: str, lines: Sequence[str], is_markdown: bool) -> str:
    bullet = "- " if is_markdown else "  "
    shown = [bullet + visible(line) for line in lines] or [f"{bullet}nothing but the figures"]
    return "\n".join([f"{title}:", *(["", *shown] if is_markdown else shown)])


def _differences(comparison: Comparison) -> list[str]:
    """Return what differs between rows that match, each change once with the rows it concerns."""
    matches = list({id(line.match): line.match for line in comparison.lines}.values())
    changes = Counter(
        (name, _short(a), _short(b))
        for match in matches
        for name, (a, b) in match.differences.items()
    )
    lines = []
    for (name, a, b), count in changes.items():
        rows = "" if count == len(matches) else f" ({count} of {len(matches)} rows)"
        lines.append(f"{name}: {a} -> {b}{rows}")
    return lines


def _short(value: Any) -> str:
    text = "not recorded" if value is None else str(value)
    return text[:8] if len(text) == HASH else text[:LONGEST]


def _cells(line: Line, names: Names) -> list[str]:
    test = line.change
    ratio = ""
    if test is not None:
        low, high = test.interval()
        ratio = "equal" if test.is_none else f"{test.ratio:.3f}  [{low:.3f}, {high:.3f}]"
    p = "" if line.corrected is None else _p(line.corrected)
    least = "" if line.least is None else f"{line.least:.1%}"
    state = "" if line.state == SAME else line.state
    return [
        _place(line, names),
        line.figure,
        _value(line, line.a),
        _value(line, line.b),
        ratio,
        p,
        least,
        ": ".join(filter(None, [state, line.note])),
    ]


def _place(line: Line, names: Names) -> str:
    row = line.match.a
    if line.tasks == 1:
        return place_of(row, names)
    return f"{names[method(row)]}, mean of {line.tasks} tasks, {distribution(row)}"


def _value(line: Line, value: float | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    unit = unit_of(line.figure)
    return f"{value:.1f}{unit}" if unit else f"{value:.2f}"


def _p(p: float) -> str:
    return "<0.001" if p < 1e-3 else f"{p:.3f}"


def _notes(comparison: Comparison, names: Names) -> list[str]:
    beyond = comparison.beyond_noise
    counts = Counter(line.state for line in beyond)
    counted = ", ".join(f"{count} {state}" for state, count in counts.items())
    several = f"{len(beyond)} figures differ" if len(beyond) > 1 else "1 figure differs"
    found = f"{several} beyond noise: {counted}"
    notes = [found if beyond else "no figure differs beyond noise"]
    notes.append(
        f"p is corrected for the {comparison.tests} figures tested (Holm): a comparison of "
        f"unchanged runs shows any difference with probability at most {ALPHA:.0%}"
    )
    notes.append(
        f"seen at {POWER:.0%}: the smallest change that these prompts reveal with that probability"
    )
    if any(line.figure not in (STEPS, VERDICT) and line.change for line in comparison.lines):
        notes.append("speedup: through each side's own vanilla; the times of A and B never meet")
        notes.append(_floor_note(comparison))
    notes += _missing("A", comparison.only_a, names) + _missing("B", comparison.only_b, names)
    return notes


def _floor_note(comparison: Comparison) -> str:
    floors = [line.floor for line in comparison.lines if line.floor]
    if not floors:
        return "no A/A floor: it needs vanilla measured twice on both sides, as `run` does"
    return f"A/A floor: changes of a speedup below {max(floors):.1%} count as noise"


def _missing(side: str, rows: Sequence[Row], names: Names) -> list[str]:
    """Say which rows only one side has, the first few by name."""
    if not rows:
        return []
    named = "; ".join(place_of(row, names) for row in rows[:NAMED])
    more = f"; and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return [f"only in {side}: {named}{more}"]


# JSON


def _content(comparison: Comparison) -> dict[str, Any]:
    return {
        "differences": _differences(comparison),
        "lines": [_line(line) for line in comparison.lines],
        "only_a": [_row(row) for row in comparison.only_a],
        "only_b": [_row(row) for row in comparison.only_b],
        "tests": comparison.tests,
        "worse": comparison.worse,
    }


def _line(line: Line) -> dict[str, Any]:
    test = line.change
    low, high = test.interval() if test else (None, None)
    return {
        **_row(line.match.a),
        "figure": line.figure,
        "a": line.a,
        "b": line.b,
        "ratio": test.ratio if test else None,
        "ratio_low": low,
        "ratio_high": high,
        "prompts": test.prompts if test else None,
        "p": line.p,
        "p_corrected": line.corrected,
        "least": line.least,
        "floor": line.floor,
        "state": line.state,
        "note": line.note,
        "tasks": line.tasks,
    }


def _row(row: Row) -> dict[str, Any]:
    names = ("decoder", "options", "target", "task", "data_source", "temperature")
    cuts = ("top_p", "top_k", "min_p", *PENALTIES)
    return {name: row[name] for name in (*names, *cuts)}
