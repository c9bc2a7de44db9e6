"""The findings of the probe as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import groupby

from fspad_bench.lossless.invariance.probe import WHOLE, Finding, kept
from fspad_bench.util.grid import grid

HEAD = (
    "subject",
    "company",
    "rows",
    "first operation that differs",
    "layer",
    "ulps",
    "largest gap",
    "other choices",
)


KEPT = "ours: every row keeps its bits in every company"
CHANGED = "ours: rows do not keep their bits"
NOT_ASKED = "ours: not asked"


def render(findings: Sequence[Finding], setting: dict[str, object]) -> str:
    """Return one line for each subject, company and first operation, and the verdict."""
    lines = []
    for _, group in groupby(findings, key=_place):
        lines.append(_line(list(group)))
    return "\n\n".join([_facts(setting), grid(lines, HEAD), verdict(findings)])


def _facts(setting: dict[str, object]) -> str:
    """Return the setting in a line; a number and a version stand beside what they are of."""
    named = {"threads", "torch", "prefix"}
    return " · ".join(f"{k} {v}" if k in named else str(v) for k, v in setting.items())


def verdict(findings: Sequence[Finding]) -> str:
    """Return whether ours keeps bits, and what first changes a row of every subject."""
    changed: dict[str, Finding] = {}
    for finding in findings:
        if not finding.same:
            changed.setdefault(finding.subject, finding)
    own = [finding for finding in changed.values() if finding.own]
    asked = any(finding.own for finding in findings)
    lines = [CHANGED if own else KEPT if asked else NOT_ASKED]
    lines += [f"- {_told(finding)}" for finding in own]
    others = [finding for finding in changed.values() if not finding.own]
    if others:
        lines += ["", "for information, not what our forward runs here:"]
        lines += [f"- {_told(finding)}" for finding in others]
    return "\n".join(lines)


def _told(finding: Finding) -> str:
    assert finding.difference is not None
    operation = finding.difference.operation
    place = "" if operation.layer is None else f" of layer {operation.layer}"
    kind, rows = finding.company
    what = "changes" if operation.name == finding.subject else f"{operation.name}{place} changes"
    is_whole = kind in WHOLE
    row = f"row {finding.difference.row} of {rows}" if is_whole else f"the row among {rows}"
    return f"{finding.subject}: {what} {row} ({kind})"


def _place(finding: Finding) -> tuple[object, ...]:
    operation = finding.difference.operation if finding.difference else None
    return finding.subject, finding.company.kind, operation


def _line(group: list[Finding]) -> list[object]:
    first = group[0]
    rows = ", ".join(str(finding.company.rows) for finding in group)
    compared = sum(finding.company.compared for finding in group)
    known = [finding.choices for finding in group if finding.choices is not None]
    choices = f"{sum(known)} of {compared}" if known else ""
    differences = [finding.difference for finding in group if finding.difference]
    if not differences:
        return [first.subject, first.company.kind, rows, "none: same bits", "", "", "", choices]
    operation = differences[0].operation
    return [
        first.subject,
        first.company.kind,
        rows,
        operation.name,
        "" if operation.layer is None else operation.layer,
        f"{max(difference.ulps for difference in differences):.0f}",
        f"{max(difference.gap for difference in differences):.2g}",
        choices,
    ]


def as_json(findings: Sequence[Finding], setting: dict[str, object]) -> str:
    """Return all findings, one object for each subject, company and size.

    `kept` is null where nothing of ours was asked.
    """
    fields = [_fields(finding) for finding in findings]
    ours = kept(findings) if any(finding.own for finding in findings) else None
    return json.dumps({**setting, "kept": ours, "findings": fields}, indent=2)


def _fields(finding: Finding) -> dict[str, object]:
    difference = finding.difference
    fields: dict[str, object] = {
        "subject": finding.subject,
        "own": finding.own,
        "company": finding.company.kind,
        "rows": finding.company.rows,
        "compared": finding.company.compared,
        "same": finding.same,
        "operation": difference.operation.name if difference else None,
        "layer": difference.operation.layer if difference else None,
        "row": difference.row if difference else None,
        "ulps": _finite(difference.ulps) if difference else 0,
        "largest_gap": _finite(difference.gap) if difference else 0,
        "other_choices": finding.choices,
    }
    return fields


def _finite(value: float) -> float | None:
    """Return None in place of a number that JSON does not have."""
    return value if math.isfinite(value) else None
