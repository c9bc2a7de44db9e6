"""A report as JUnit XML, which CI systems show: an expectation or a check is a test case.

- The checks of one expectation are one case, with its time; elsewhere each check is a case.
- A check that does not hold is a failure, a run that was refused an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from fspad_bench.lossless.checks import BASELINES, ELSEWHERE, NOT_RUN, Check, Part
from fspad_bench.util.terminal import visible, visible_lines

SUITE = "fspad-bench"


def junit(parts: Sequence[Part]) -> str:
    """Return the report as JUnit XML."""
    root = Element("testsuites", name=SUITE)
    for part in parts:
        suite = SubElement(root, "testsuite", name=visible(part.title))
        for checks in _cases(part):
            suite.append(_case(part, checks))
        _count(suite)
    _count(root)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _cases(part: Part) -> list[list[Check]]:
    if part.title != BASELINES:
        return [[check] for check in part.checks]
    cases: list[list[Check]] = []
    for check in part.checks:
        if check.seconds is None and check.name != NOT_RUN and cases:
            cases[-1].append(check)
        else:
            cases.append([check])
    return cases


def _case(part: Part, checks: Sequence[Check]) -> Element:
    first = checks[0]
    name = first.subject if part.title == BASELINES else first.name
    suite = part.title if part.title == BASELINES else f"{part.title}.{first.subject}"
    seconds = sum(check.seconds or 0.0 for check in checks)
    case = Element(
        "testcase", classname=visible(f"{SUITE}.{suite}"), name=visible(name), time=_time(seconds)
    )
    failures = [check for check in checks if not check.holds]
    if failures:
        kind = "error" if first.name == NOT_RUN else "failure"
        problem = SubElement(case, kind, message=_line(failures[0]), type=failures[0].verdict)
        problem.text = "\n".join(map(_line, failures))
    elif first.verdict == ELSEWHERE:
        SubElement(case, "skipped", message=_line(first))
    SubElement(case, "system-out").text = "\n".join(map(_line, checks))
    return case


def _line(check: Check) -> str:
    bound = f" (bound: {check.bound})" if check.bound else ""
    return visible_lines(f"{check.name}: {check.verdict}: {check.figure}{bound}")


def _count(element: Element) -> None:
    """Write how many cases there are, of each outcome, and their seconds."""
    cases = list(element.iter("testcase"))
    element.set("tests", str(len(cases)))
    for name, child in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(name, str(sum(case.find(child) is not None for case in cases)))
    element.set("time", _time(sum(float(case.get("time", "0")) for case in cases)))


def _time(seconds: float) -> str:
    return f"{seconds:.3f}"
