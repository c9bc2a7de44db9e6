"""What a check found, and how a list of checks reads: a table of checks by subjects, then what failed and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from tabulate import tabulate

DECODERS = "decoders"
WRONG = "wrong rules"
PASS = "PASS"
FAIL = "FAIL"
VACUOUS = "VACUOUS"
ELSEWHERE = "-"


class Check(NamedTuple):
    """`figure` against `bound`, in words a reviewer can read; `verdict` is one of the four above.

    VACUOUS fails too: the check held, but what it had to say something about never happened. `-` says that another
    check covers this subject, and `figure` which.
    """

    name: str
    subject: str
    verdict: str
    figure: str
    bound: str = ""

    @property
    def holds(self) -> bool:
        return self.verdict in (PASS, ELSEWHERE)

    @classmethod
    def of(cls, name: str, subject: str, holds: bool, figure: str, bound: str) -> Check:
        return cls(name, subject, PASS if holds else FAIL, figure, bound)


class Part(NamedTuple):
    """A part of a report: what vanilla leans on, the rules, the decoders, the wrong rules."""

    title: str
    checks: list[Check]


def passed(parts: Sequence[Part]) -> bool:
    """Whether nothing failed and nothing was vacuous."""
    return all(check.holds for part in parts for check in part.checks)


def render(parts: Sequence[Part], style: str) -> str:
    """`text` or `json`; in text the decoders come first, as a table of checks by decoders."""
    if style == "json":
        listing = [
            {"part": part.title, **check._asdict()} for part in parts for check in part.checks
        ]
        return json.dumps(
            {"certified": passed(parts), "checks": listing}, indent=2, ensure_ascii=False
        )
    every = [check for part in parts for check in part.checks]
    bad = sum(not check.holds for check in every)
    verdict = (
        f"{bad} of {len(every)} checks do not hold" if bad else f"{len(every)} checks, all hold"
    )
    overview = [_matrix(part) for part in parts if part.title == DECODERS]
    return "\n\n".join([*overview, *(_detail(part) for part in parts), verdict])


def _matrix(part: Part) -> str:
    subjects = list(dict.fromkeys(check.subject for check in part.checks))
    cell = {(check.name, check.subject): check.verdict for check in part.checks}
    names = dict.fromkeys(check.name for check in part.checks)
    grid = [[name, *(cell.get((name, subject), "") for subject in subjects)] for name in names]
    return tabulate(grid, [part.title, *subjects], disable_numparse=True)


def _detail(part: Part) -> str:
    """Every check of a part with its figure and its bound; the subject where it says more than the title."""
    grid = [
        [check.name, check.subject, check.verdict, check.figure, check.bound]
        for check in part.checks
    ]
    return tabulate(grid, [part.title, "", "verdict", "figure", "bound"], disable_numparse=True)
