"""The report of a list of checks, as text, JSON or JUnit XML.

A text report opens with a table of verdicts, checks by decoders; below it every check is listed
with its figure and its bound.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from fspad_bench.lossless.checks import DECODERS, SERVED_CELLS, Part, passed
from fspad_bench.lossless.junit import junit
from fspad_bench.util.grid import grid


def render(parts: Sequence[Part], style: str) -> str:
    """Return the report as `text`, `json` or `junit`."""
    if style == "junit":
        return junit(parts)
    return _as_json(parts) if style == "json" else _as_text(parts)


def _as_json(parts: Sequence[Part]) -> str:
    checks = [{"part": part.title, **check._asdict()} for part in parts for check in part.checks]
    about = [part.about for part in parts if part.about]
    report = {"certified": passed(parts), **({"about": about} if about else {}), "checks": checks}
    return json.dumps(report, indent=2)


def _as_text(parts: Sequence[Part]) -> str:
    checks = [check for part in parts for check in part.checks]
    bad = sum(not check.holds for check in checks)
    summary = f"{len(checks)} checks, all hold"
    if bad:
        summary = f"{bad} of {len(checks)} checks do not hold"
    overview = [_matrix(part) for part in parts if part.title in (DECODERS, SERVED_CELLS)]
    about = [part.about for part in parts if part.about]
    return "\n\n".join([*about, *overview, *(_detail(part) for part in parts), summary])


def _matrix(part: Part) -> str:
    """Return the table of verdicts, checks by subjects; a served engine's by checks."""
    subjects = list(dict.fromkeys(check.subject for check in part.checks))
    names = dict.fromkeys(check.name for check in part.checks)
    verdicts = {(check.name, check.subject): check.verdict for check in part.checks}
    if part.title == SERVED_CELLS:
        lines = [
            [subject, *(verdicts.get((name, subject), "") for name in names)]
            for subject in subjects
        ]
        return grid(lines, [part.title, *names])
    lines = [[name, *(verdicts.get((name, subject), "") for subject in subjects)] for name in names]
    return grid(lines, [part.title, *subjects])


def _detail(part: Part) -> str:
    """Return the table of all checks of a part, each with its figure and its bound."""
    lines = [
        [check.name, check.subject, check.verdict, check.figure, check.bound]
        for check in part.checks
    ]
    return grid(lines, [part.title, "", "verdict", "figure", "bound"])
