"""The result of a check, and the parts that results are reported in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

DECODERS = "decoders"
WRONG = "wrong rules"
BASELINES = "baselines"
SERVED_CELLS = "served engine"  # its subjects are many: a line each
NOT_RUN = "run"  # the check of an expectation whose run was refused
PASS = "PASS"
FAIL = "FAIL"
VACUOUS = "VACUOUS"
INCONCLUSIVE = "INCONCLUSIVE"
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
    - INCONCLUSIVE does not hold: what a served engine answered cannot tell.
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
    """A section of a report, such as the foundations, the rules or the decoders.

    `about`: what was checked, where its title does not say it.
    """

    title: str
    checks: list[Check]
    about: str = ""


def passed(parts: Sequence[Part]) -> bool:
    """Return whether every check holds: none failed and none was vacuous."""
    return all(check.holds for part in parts for check in part.checks)
