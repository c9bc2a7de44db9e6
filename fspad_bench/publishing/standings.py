"""Decoders in the order of their mean speedup over the tasks, in one setting of a machine.

- Each task weighs the same, and a mean needs a figure of every task: a partial mean would be
  biased.
- Tasks have prompts of their own, so the intervals of their figures are independent: the mean's
  half-widths are the roots of the sums of the tasks' squared half-widths, over their number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fspad_bench.benchmark.means import over_tasks, place
from fspad_bench.benchmark.rows import Row
from fspad_bench.benchmark.stats import Interval
from fspad_bench.benchmark.titles import Names, method
from fspad_bench.benchmark.verdict import shown_verdict


@dataclass(frozen=True)
class Standing:
    """A decoder's rows of several tasks, sorted by task, and their means."""

    name: str
    rows: list[Row]

    @property
    def verdicts(self) -> str:
        """Return the number of rows of each verdict, as `5 exact, 1 tie`."""
        counts = Counter(map(shown_verdict, self.rows))
        return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())

    @property
    def noisy(self) -> bool:
        return any(row["noisy"] for row in self.rows)

    def mean(self, figure: str) -> Interval | None:
        """Return the mean over the tasks, None where a task has no value."""
        return mean(self.rows, figure)


@dataclass(frozen=True)
class Standings:
    """Decoders of one place (target, precision, machine) and one way to sample, the fastest first;
    those without a mean speedup come last.
    """

    place: str
    sampling: str
    tasks: list[str]
    decoders: list[Standing]

    @property
    def first(self) -> Row:
        """A row of the setting, which all rows share but for task and decoder."""
        return self.decoders[0].rows[0]


def mean(rows: Sequence[Row], figure: str) -> Interval | None:
    """Return the mean of a figure of several tasks, with its interval (see above).

    The interval's ends are nan where a task's own are not known.
    """
    values = [row[figure] for row in rows]
    if not values or None in values:
        return None
    value = sum(values) / len(values)
    lows = _half_width(rows, figure, "low")
    highs = _half_width(rows, figure, "high")
    return Interval(value, value - lows, value + highs)


def _half_width(rows: Sequence[Row], figure: str, end: str) -> float:
    ends = [row[f"{figure}_{end}"] for row in rows]
    if None in ends:
        return math.nan
    return math.hypot(*[row[figure] - own for row, own in zip(rows, ends, strict=True)]) / len(rows)


def standings(table: Sequence[Row], names: Names, *, fewest_tasks: int = 2) -> list[Standings]:
    """Return the standings of every setting in which some decoder has so many tasks or more."""
    settings: dict[tuple[str, str, tuple[str, ...]], list[Standing]] = {}
    for where in dict.fromkeys(place(row) for row in table):
        for group in over_tasks(row for row in table if place(row) == where):
            if len(group.rows) < fewest_tasks:
                continue
            ordered = sorted(group.rows, key=lambda row: row["task"])
            tasks = tuple(row["task"] for row in ordered)
            setting = (where, group.sampling, tasks)
            settings.setdefault(setting, []).append(Standing(names[method(ordered[0])], ordered))
    return [
        Standings(where, sampling, list(tasks), sorted(group, key=_slowness))
        for (where, sampling, tasks), group in settings.items()
    ]


def _slowness(standing: Standing) -> float:
    speedup = standing.mean("speedup")
    return math.inf if speedup is None else -speedup.value
