"""Compare two sets of records: which rows differ beyond noise.

- p-values are corrected for the number of figures looked at (Holm 1979): one comparison of
  unchanged records raises a false alarm with probability at most 5%.
- The mean over tasks of each decoder is a figure of its own, which finds what no task alone shows.
- Where records hold vanilla twice (A/A), its speedup over itself is noise, and a speedup that
  changed by no more than that did not change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fspad_bench.benchmark.changes import (
    BETTER,
    CHANGED,
    SAME,
    WORSE,
    Line,
    is_vanilla,
    lines_of,
    mean_lines,
)
from fspad_bench.benchmark.matching import ASKED, Match, Side, matches
from fspad_bench.benchmark.paired import ALPHA, holm
from fspad_bench.benchmark.record import VANILLA
from fspad_bench.benchmark.rows import Row
from fspad_bench.util.errors import BenchError

FLOOR_OF = tuple(name for name in ASKED if name != "decoder")


@dataclass(frozen=True)
class Comparison:
    """All lines, and the rows that only one side has."""

    lines: list[Line]
    only_a: list[Row]
    only_b: list[Row]

    @property
    def tests(self) -> int:
        return sum(line.p is not None for line in self.lines)

    @property
    def beyond_noise(self) -> list[Line]:
        return [line for line in self.lines if line.state in (BETTER, WORSE, CHANGED)]

    @property
    def has_floor(self) -> bool:
        return any(line.floor for line in self.lines)

    @property
    def worse(self) -> bool:
        return any(line.state == WORSE for line in self.lines)


def compare(a: Side, b: Side) -> Comparison:
    """Compare the rows of two sides. Raises BenchError where they have none in common."""
    common = matches(a, b)
    if not common:
        raise BenchError(f"no row is on both sides: {_apart(a, b)}", _HINT)
    floors = _floors(common)
    lines = [
        line
        for match in common
        for line in lines_of(a, b, match, floors.get(_setting(match.a), 0.0))
    ]
    known = {id(row) for match in common for row in match}
    return Comparison(
        judged([*mean_lines(lines), *lines]),
        [row for row in a.rows if id(row) not in known],
        [row for row in b.rows if id(row) not in known],
    )


_HINT = "compare runs of the same target, task, data, decoder, sampling and length"


def _apart(a: Side, b: Side) -> str:
    """Say in which fields all rows of one side differ from all of the other."""
    apart = []
    for name in ASKED:
        values_a = {row[name] for row in a.rows}
        values_b = {row[name] for row in b.rows}
        if not values_a & values_b:
            apart.append(f"{name} {_listed(values_a)} against {_listed(values_b)}")
    return "; ".join(apart) or "no field tells them apart, but no two rows agree in all"


def _listed(values: set[object]) -> str:
    return ", ".join(sorted(map(str, values))) or "none"


def _floors(common: Sequence[Match]) -> dict[tuple[object, ...], float]:
    """Return how far noise moves a speedup's logarithm, by setting: both sides' A/A, added."""
    floors: dict[tuple[object, ...], float] = {}
    for match in common:
        ratios = [_aa(row) for row in match]
        if all(ratios):
            moved = sum(abs(math.log(ratio)) for ratio in ratios if ratio)
            floors[_setting(match.a)] = max(moved, floors.get(_setting(match.a), 0.0))
    return floors


def _aa(row: Row) -> float | None:
    """Return vanilla's speedup over itself, of a row that has one or of a copy of vanilla."""
    is_copy = is_vanilla(row["decoder"]) and row["decoder"] != VANILLA
    return row["speedup"] if is_copy else row.get("aa")


def _setting(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in FLOOR_OF)


def judged(lines: Sequence[Line]) -> list[Line]:
    """Return the lines with corrected p-values, and a state for those that have one."""
    tested = [line for line in lines if line.p is not None]
    corrected = dict(
        zip(map(id, tested), holm([line.p for line in tested if line.p is not None]), strict=True)
    )
    return [
        _with_state(line, corrected[id(line)], len(tested)) if id(line) in corrected else line
        for line in lines
    ]


def _with_state(line: Line, corrected: float, tests: int) -> Line:
    least = line.change.least(tests, line.floor) if line.change else None
    is_beyond = corrected < ALPHA and _log_ratio(line) > line.floor
    state = SAME
    if is_beyond:
        state = BETTER if _rises(line) else WORSE
    return replace(line, corrected=corrected, least=least, state=state)


def _log_ratio(line: Line) -> float:
    return abs(line.change.log_ratio) if line.change else math.inf


def _rises(line: Line) -> bool:
    return float(line.b or 0) > float(line.a or 0)
