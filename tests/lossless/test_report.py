"""The text report of a certification: what a reader finds at its end."""

from fspad_bench.lossless.checks import DECODERS, FAIL, PASS, SERVED_CELLS, VACUOUS, Check, Part
from fspad_bench.lossless.report import render

ENGINE = Part("engine", [Check("logits", "tiny", PASS, "1e-9", "1e-6")])
GOOD = [Check("identity", "fspad", PASS, "0 of 40 differ"), Check("PIT", "fspad", PASS, "p 0.4")]
BAD = [Check("identity", "mine", FAIL, "3 of 40 differ", "0"), Check("PIT", "mine", VACUOUS, "-")]


def ending(*parts):
    """Return the last paragraph of a report, and the one before it, in lines."""
    *_, before, last = render(parts, "text").split("\n\n")
    return before.splitlines(), last.splitlines()


def test_a_report_ends_with_the_decoders_that_are_certified():
    before, last = ending(ENGINE, Part(DECODERS, [*GOOD, Check("PIT", "eagle", PASS, "p 0.2")]))
    assert last == ["4 checks, all hold", "certified: fspad, eagle"]
    assert before[0].split() == ["decoders", "verdict", "figure", "bound"]


def test_a_report_ends_with_the_checks_that_do_not_hold():
    before, last = ending(ENGINE, Part(DECODERS, [*GOOD, *BAD]))
    assert before[0].split() == ["not", "held", "verdict", "figure", "bound"]
    assert [line.split()[:3] for line in before[-2:]] == [
        ["identity", "mine", "FAIL"],
        ["PIT", "mine", "VACUOUS"],
    ]
    assert last == ["2 of 5 checks do not hold", "certified: fspad", "not certified: mine"]


def test_no_decoder_is_certified_on_an_engine_that_is_not():
    broken = Part("engine", [Check("logits", "tiny", FAIL, "0.1", "1e-6")])
    _, last = ending(broken, Part(DECODERS, GOOD))
    assert last[-1] == "no decoder is certified: checks of engine do not hold"


def test_a_served_engine_is_no_decoder():
    _, last = ending(Part(SERVED_CELLS, [Check("greedy", "cell 1", PASS, "0 of 4 differ")]))
    assert last == ["1 checks, all hold"]
