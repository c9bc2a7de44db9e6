"""What a page draws of each setting: speedups by task, loops, steps, and where the time goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fspad_bench.benchmark.record import VANILLA
from fspad_bench.benchmark.rows import Row
from fspad_bench.publishing import plots
from fspad_bench.publishing.plots import Dot
from fspad_bench.publishing.standings import Standing, Standings

LONGEST_STEP = 6  # tokens: longer steps share the last part of a bar
MARGIN = 0.06  # of the range of an axis


@dataclass(frozen=True)
class Picture:
    """Panels under one title. `legend` names the parts of bars, in the order of their colours."""

    title: str
    caption: str
    panels: list[Markup]
    legend: tuple[str, ...] = ()


def pictures(standings: Standings, name: str) -> list[Picture]:
    """Return the pictures of a setting; `name` begins the names within its SVGs."""
    drawn = [
        _speedups(standings, f"{name}-speedup"),
        _without_loops(standings, f"{name}-loops"),
        _steps(standings, f"{name}-steps"),
        _time(standings, f"{name}-time"),
    ]
    return [picture for picture in drawn if picture is not None]


def _speedups(standings: Standings, name: str) -> Picture | None:
    decoders = _drafting(standings)
    known = [s for s in decoders if any(row["speedup"] is not None for row in s.rows)]
    if not known:
        return None
    limits = _limits([_dot(row, "speedup") for s in known for row in s.rows])
    panels = []
    for number, task in enumerate(standings.tasks):
        figures = [_dot(s.rows[number], "speedup") for s in known]
        names = [marked(s.name, s.rows[number]["noisy"]) for s in known]
        svg = plots.dots(f"{name}{number}", task, names, figures, limits)
        panels.append(Markup(svg))
    return Picture(
        "Speedup by task",
        "Decode speedup over vanilla (the dashed line) with its 95% interval over prompts.",
        panels,
    )


def _without_loops(standings: Standings, name: str) -> Picture | None:
    decoders = _drafting(standings)
    if not any(row["looping"] for s in standings.decoders for row in s.rows):
        return None
    panels = []
    for figure, title in (("speedup", "speedup"), ("tokens_per_step", "tokens/step")):
        pairs = [(s, s.mean(figure), s.mean(f"{figure}_without_loops")) for s in decoders]
        known = [(s, every, rest) for s, every, rest in pairs if every and rest]
        if known:
            figures = [Dot(every.value, hollow=rest.value) for _, every, rest in known]
            names = [marked(s.name, figure == "speedup" and s.noisy) for s, _, _ in known]
            svg = plots.dots(f"{name}-{figure}", title, names, figures, _limits(figures))
            panels.append(Markup(svg))
    return Picture(
        "With and without outputs that loop",
        "Mean of the tasks: over all outputs (filled), and over those that do not end in a loop "
        "(hollow). Text that repeats itself flatters whoever copies.",
        panels,
    )


def _steps(standings: Standings, name: str) -> Picture | None:
    decoders = [s for s in _drafting(standings) if any(row["accepted"] for row in s.rows)]
    if not decoders:
        return None
    parts = [_step_shares(s.rows) for s in decoders]
    svg = plots.bars(name, "all tasks", [s.name for s in decoders], parts, "% of steps")
    counts = [f"{count}" for count in range(1, LONGEST_STEP)]
    return Picture(
        "Tokens a step commits",
        "How often a step committed 1, 2, 3, ... tokens: 1 where no draft was accepted, one more "
        "with each level of the tree.",
        [Markup(svg)],
        legend=(*counts, f"{LONGEST_STEP} or more"),
    )


def _step_shares(rows: Sequence[Row]) -> list[float]:
    """Return the percentage of steps that committed 1, 2, ... tokens, over all tasks."""
    counts = [0] * LONGEST_STEP
    for row in rows:
        for depth, count in enumerate(row["accepted"]):
            counts[min(depth, LONGEST_STEP - 1)] += count
    total = sum(counts) or 1
    return [100 * count / total for count in counts]


def _time(standings: Standings, name: str) -> Picture | None:
    parts = [(s, _time_parts(s.rows)) for s in standings.decoders]
    known = [(s, widths) for s, widths in parts if widths]
    if not known:
        return None
    names = [marked(s.name, s.noisy) for s, _ in known]
    svg = plots.bars(name, "mean of the tasks", names, [w for _, w in known], "time, vanilla = 1")
    return Picture(
        "Where the time of a token goes",
        "Decode time per token beside vanilla's, in parts: the target's forwards, drafting, and "
        "the rest (verification, the cache, the host).",
        [Markup(svg)],
        legend=("forwards", "drafting", "rest"),
    )


def _time_parts(rows: Sequence[Row]) -> list[float]:
    """Return the times of a token's parts over vanilla's, empty where they are not known."""
    sums = [0.0, 0.0, 0.0]
    for row in rows:
        if row["speedup"] is None or row["score_share"] is None:
            return []
        draft = row["draft_share"] or 0.0
        shares = (row["score_share"], draft, max(0.0, 1 - row["score_share"] - draft))
        for number, share in enumerate(shares):
            sums[number] += share / row["speedup"] / len(rows)
    return sums


def marked(text: str, noisy: bool) -> str:
    """Return a text with the mark of figures that were measured while other work was running."""
    return f"~{text}" if noisy else text


def _drafting(standings: Standings) -> list[Standing]:
    return [s for s in standings.decoders if s.rows[0]["decoder"] != VANILLA]


def _dot(row: Row, figure: str) -> Dot:
    values = [row[figure], row[f"{figure}_low"], row[f"{figure}_high"]]
    return Dot(*[math.nan if value is None else value for value in values])


def _limits(figures: Sequence[Dot]) -> tuple[float, float]:
    """Return the ends of an axis that shows 1 and all figures, within the range of reason."""
    values = [1.0, *(value for dot in figures for value in dot if math.isfinite(value))]
    room = MARGIN * ((max(values) - min(values)) or 1)
    return min(values) - room, max(values) + room
