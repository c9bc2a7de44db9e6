"""The result of a check, and the report of a list of checks.

A text report opens with a table of verdicts, checks by decoders; below it every check is listed
with its figure and its bound.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fspad_bench.util.grid import grid

DECODERS = "decoders"
WRONG = "wrong rules"
BASELINES = "baselines"
NOT_RUN = "run"  # the check of an expectation whose run was refused
PASS = "PASS"
FAIL = "FAIL"
VACUOUS = "VACUOUS"
ELSEWHERE = "-"


def worst_of(errors: Iterable[float]) -> float:
    """Return the largest error, 0 of none, and infinity where one is not a number.

    `max` passes over NaN: `max(0.0, nan)` is 0.
    """
    known = list(errors)
    return math.inf if any(map(math.isnan, known)) else max(known, default=0.0)


class Check(NamedTuple):
    """A verdict with its reason: `figure` against `bound`, in words a reviewer can read.

    - VACUOUS does not hold: nothing was wrong, but the case under test never occurred.
    - `-` holds: another check covers this subject, and `figure` names it.
    - `seconds`: what it took, where that is known.
    """

    name: str
    subject: str
    verdict: str
    figure: str
    bound: str = ""
    seconds: float | None = None

    @property
    def holds(self) -> bool:
        return self.verdict in (PASS, ELSEWHERE)

    @classmethod
    def of(cls, name: str, subject: str, holds: bool, figure: str, bound: str) -> Check:
        return cls(name, subject, PASS if holds else FAIL, figure, bound)


class Part(NamedTuple):
    """A section of a report, such as the foundations, the rules or the decoders."""

    title: str
    checks: list[Check]


def passed(parts: Sequence[Part]) -> bool:
    """Return whether every check holds: none failed and none was vacuous."""
    return all(check.holds for part in parts for check in part.checks)


def render(parts: Sequence[Part], style: str) -> str:
    """Return the report as `text`, `json` or `junit`."""
    if style == "junit":
        from fspad_bench.lossless.junit import junit

        return junit(parts)
    return _as_json(parts) if style == "json" else _as_text(parts)


def _as_json(parts: Sequence[Part]) -> str:
    checks = [{"part": part.title, **check._asdict()} for part in parts for check in part.checks]
    report = {"certified": passed(parts), "checks": checks}
    return json.dumps(report, indent=2)


def _as_text(parts: Sequence[Part]) -> str:
    checks = [check for part in parts for check in part.checks]
    bad = sum(not check.holds for check in checks)
    summary = f"{len(checks)} checks, all hold"
    if bad:
        summary = f"{bad} of {len(checks)} checks do not hold"
    overview = [_matrix(part) for part in parts if part.title == DECODERS]
    return "\n\n".join([*overview, *(_detail(part) for part in parts), summary])


def _matrix(part: Part) -> str:
    """Return the table of verdicts, checks by subjects."""
    subjects = list(dict.fromkeys(check.subject for check in part.checks))
    names = dict.fromkeys(check.name for check in part.checks)
    verdicts = {(check.name, check.subject): check.verdict for check in part.checks}
    lines = [[name, *(verdicts.get((name, subject), "") for subject in subjects)] for name in names]
    return grid(lines, [part.title, *subjects])


def _detail(part: Part) -> str:
    """Return the table of all checks of a part, each with its figure and its bound."""
    lines = [
        [check.name, check.subject, check.verdict, check.figure, check.bound]
        for check in part.checks
    ]
    return grid(lines, [part.title, "", "verdict", "figure", "bound"])
