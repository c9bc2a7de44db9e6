"""The report of a list of checks, as text, JSON or JUnit XML.

A text report opens with a table of verdicts, checks by decoders; below it every check is listed
with its figure and its bound. It ends with those that do not hold, and with which decoders are
certified.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from fspad_bench.lossless.checks import DECODERS, SERVED_CELLS, Check, Part, passed
from fspad_bench.lossless.junit import junit
from fspad_bench.util.grid import grid

HEADER = ["", "verdict", "figure", "bound"]  # after a part's title


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
    overview = [_matrix(part) for part in parts if part.title in (DECODERS, SERVED_CELLS)]
    about = [part.about for part in parts if part.about]
    return "\n\n".join([*about, *overview, *(_detail(part) for part in parts), *_summary(parts)])


def _summary(parts: Sequence[Part]) -> list[str]:
    """Return what a reader looks for first, where a terminal shows it: at the end."""
    checks = [check for part in parts for check in part.checks]
    bad = [_line(check) for check in checks if not check.holds]
    verdicts = _certified(parts)
    if not bad:
        return ["\n".join([f"{len(checks)} checks, all hold", *verdicts])]
    count = f"{len(bad)} of {len(checks)} checks do not hold"
    return [grid(bad, ["not held", *HEADER]), "\n".join([count, *verdicts])]


def _certified(parts: Sequence[Part]) -> list[str]:
    """Return which decoders are certified: those whose own checks hold, and all that they rest on.

    A report of a served engine names no decoders.
    """
    own = [check for part in parts if part.title == DECODERS for check in part.checks]
    if not own:
        return []
    broken = [part.title for part in parts if part.title != DECODERS and not passed([part])]
    if broken:
        return [f"no decoder is certified: checks of {', '.join(broken)} do not hold"]
    failed = dict.fromkeys(check.subject for check in own if not check.holds)
    held = [name for name in dict.fromkeys(check.subject for check in own) if name not in failed]
    lines = {"certified": held, "not certified": failed}
    return [f"{verdict}: {', '.join(names)}" for verdict, names in lines.items() if names]


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
    return grid([_line(check) for check in part.checks], [part.title, *HEADER])


def _line(check: Check) -> list[str]:
    return [check.name, check.subject, check.verdict, check.figure, check.bound]
