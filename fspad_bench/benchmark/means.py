"""Rows of several tasks that a mean is taken over: those of one decoder, measured alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fspad_bench.benchmark.record import METHOD, PENALTIES
from fspad_bench.benchmark.rows import IDENTITY, Row
from fspad_bench.benchmark.titles import device_of, distribution, method

PLACE = ("target", "dtype", "device", "threads", "machine")
SAMPLING = ("temperature", "top_p", "top_k", "min_p", *PENALTIES)
DATA = ("task", "data_sha256", "card_sha256")  # each task has its own
# fields that may tell apart two measurements of one task at one place
APART = tuple(n for n in IDENTITY if n not in (*METHOD, *PLACE, *SAMPLING, *DATA))
SHOWN = 12  # characters of a value, such as a hash


@dataclass(frozen=True)
class TaskGroup:
    """Rows of one distribution and method, of each task one.

    `apart`: the fields by which tasks were measured several times at this place, and their values
    here.
    """

    rows: list[Row]
    apart: tuple[tuple[str, str], ...]

    @property
    def sampling(self) -> str:
        """How its tokens were chosen, and what tells it from the other measurements."""
        told = [f"{name}={value:.{SHOWN}}" for name, value in self.apart]
        return ", ".join([distribution(self.rows[0]), *told])


def place(row: Row) -> str:
    """Return where a row was measured: target, precision, device and machine."""
    return f"{row['target']} · {row['dtype']} · {device_of(row)} · {row['machine']}"


def over_tasks(table: Iterable[Row]) -> list[TaskGroup]:
    """Group the rows of one place by distribution and method, so that each group holds a task once.

    A task that was measured several times is in several groups: by what tells its rows apart, such
    as length or seed; of several sets of questions the largest are together.
    """
    methods: dict[tuple[str, str], list[Row]] = {}
    for row in table:
        methods.setdefault((distribution(row), method(row)), []).append(row)
    differing: dict[str, set[str]] = {}  # by distribution
    for (sampling, _), rows in methods.items():
        differing.setdefault(sampling, set()).update(_differing(rows))
    groups: dict[tuple[Any, ...], TaskGroup] = {}
    for name, rows in methods.items():
        fields = [field for field in APART if field in differing[name[0]]]
        times: Counter[tuple[Any, ...]] = Counter()
        for row in sorted(rows, key=lambda row: -row["samples"]):
            apart = tuple((field, str(row[field])) for field in fields)
            times[row["task"], apart] += 1
            group = (*name, apart, times[row["task"], apart])
            groups.setdefault(group, TaskGroup([], apart)).rows.append(row)
    return list(groups.values())


def _differing(rows: Sequence[Row]) -> list[str]:
    """Return the fields of which some task has several values."""
    tasks = {row["task"] for row in rows}
    values = {
        (field, task): {str(row[field]) for row in rows if row["task"] == task}
        for field in APART
        for task in tasks
    }
    return [field for field in APART if any(len(values[field, task]) > 1 for task in tasks)]
