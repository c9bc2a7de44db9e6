"""Figures of a row as a page shows them: text, interval, and the value that sorting compares."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fspad_bench.benchmark.record import VANILLA
from fspad_bench.benchmark.render import unit_of
from fspad_bench.benchmark.rows import Row
from fspad_bench.benchmark.stats import Interval

UNKNOWN = "–"


@dataclass(frozen=True)
class Cell:
    """A figure: its text, its interval as text, and the number that it is sorted by, if any."""

    text: str = UNKNOWN
    interval: str = ""
    value: float | None = None


def figure(
    row: Row,
    name: str,
    form: str = ".2f",
    *,
    unit: str = "",
    factor: float = 1,
    timed: bool = False,
) -> Cell:
    """Return a figure of a row with its interval where it has one.

    `timed`: it depends on the clock, so that it is marked in a noisy row.
    """
    value = row[name]
    if value is None or not math.isfinite(value):
        return Cell()
    mark = "~" if timed and row["noisy"] else ""
    text = f"{mark}{factor * value:{form}}{unit}"
    return Cell(text, "" if row["decoder"] == VANILLA else _interval(row, name, form), value)


def _interval(row: Row, name: str, form: str) -> str:
    if f"{name}_low" not in row:
        return ""
    low = row[f"{name}_low"]
    high = row[f"{name}_high"]
    return "[±?]" if low is None or high is None else f"[{low:{form}}, {high:{form}}]"


def score(row: Row) -> Cell:
    """Return the task's score with the name of its metric."""
    if row["score"] is None or not math.isfinite(row["score"]):
        return Cell()
    unit = unit_of(row["metric"])
    return Cell(f"{row['score']:.1f}{unit}", row["metric"], row["score"])


def mean_cell(mean: Interval | None, *, noisy: bool = False, plain: bool = False) -> Cell:
    """Return a mean of tasks; `plain` leaves its interval out."""
    if mean is None:
        return Cell()
    text = f"{'~' if noisy else ''}{mean.value:.2f}"
    if plain:
        return Cell(text, "", mean.value)
    is_known = math.isfinite(mean.low) and math.isfinite(mean.high)
    interval = f"[{mean.low:.2f}, {mean.high:.2f}]" if is_known else "[±?]"
    return Cell(text, interval, mean.value)
