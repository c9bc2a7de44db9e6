"""What a check found, and how a list of checks reads: a table of checks by subjects, then what failed and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

PASS, FAIL, VACUOUS, ELSEWHERE = "PASS", "FAIL", "VACUOUS", "-"


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

    @classmethod
    def of(cls, name: str, subject: str, holds: bool, figure: str, bound: str) -> Check:
        return cls(name, subject, PASS if holds else FAIL, figure, bound)


def passed(checks: Sequence[Check]) -> bool:
    """Whether nothing failed and nothing was vacuous."""
    return all(check.verdict in (PASS, ELSEWHERE) for check in checks)


def render(checks: Sequence[Check], style: str) -> str:
    """`text` or `json`."""
    if style == "json":
        listing = [check._asdict() for check in checks]
        return json.dumps({"certified": passed(checks), "checks": listing}, indent=2, ensure_ascii=False)
    from tabulate import tabulate

    names, subjects = (list(dict.fromkeys(values)) for values in list(zip(*checks, strict=True))[:2])
    cell = {(check.name, check.subject): check.verdict for check in checks}
    grid = [[name, *(cell.get((name, subject), "") for subject in subjects)] for name in names]
    detail = [[c.name, c.subject, c.verdict, c.figure, c.bound] for c in checks]
    bad = sum(check.verdict not in (PASS, ELSEWHERE) for check in checks)
    verdict = f"{len(checks)} checks, all hold" if passed(checks) else f"{bad} of {len(checks)} checks do not hold"
    return "\n\n".join(
        [
            tabulate(grid, ["check", *subjects], disable_numparse=True),
            tabulate(detail, ["check", "subject", "verdict", "figure", "bound"], disable_numparse=True),
            verdict,
        ]
    )
