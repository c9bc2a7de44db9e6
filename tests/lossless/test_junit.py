"""JUnit XML: counts that agree with the cases, and an expectation a case."""

from xml.etree import ElementTree

from fspad_bench.lossless.checks import BASELINES, Check, Part
from fspad_bench.lossless.report import render

IDENTITY = Check("identity", "fspad on tiny", "PASS", "exact", "exact", 1.25)
STEPS = Check("tokens per step", "fspad on tiny", "FAIL", "1.9", "at least 2")
REFUSED = Check("run", "eagle on tiny", "FAIL", "no head\x1b", "a run")
BLIND = Check("noise", "rules", "-", "covered by exact")


def suites(*parts):
    root = ElementTree.fromstring(render(parts, "junit"))
    assert root.tag == "testsuites"
    return root


def test_an_expectation_is_a_case_with_its_time():
    root = suites(Part(BASELINES, [IDENTITY, STEPS, REFUSED]))
    suite = root.find("testsuite")
    for element in (root, suite):
        assert [element.get(n) for n in ("tests", "failures", "errors", "skipped")] == [*"2110"]
        assert float(element.get("time")) == 1.25
    first, second = suite.findall("testcase")
    assert (first.get("classname"), first.get("name")) == ("fspad-bench.baselines", "fspad on tiny")
    assert float(first.get("time")) == 1.25
    assert first.find("failure").get("message") == (
        "tokens per step: FAIL: 1.9 (bound: at least 2)"
    )
    assert "identity: PASS" in first.find("system-out").text
    assert second.find("error").get("message") == r"run: FAIL: no head\x1b (bound: a run)"


def test_each_check_of_a_certification_is_a_case():
    root = suites(Part("rules", [BLIND, STEPS._replace(verdict="VACUOUS")]))
    blind, vacuous = root.iter("testcase")
    assert blind.get("name") == "noise"
    assert blind.find("skipped") is not None
    assert vacuous.find("failure").get("type") == "VACUOUS"
    assert root.get("tests") == "2"
