"""Exact laws of the production loop, and that a distance is found where there is one."""

import pytest

from fspad_bench.core.sampling import Sampler
from fspad_bench.core.verification import RULES, Accepted, match
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.errors import BenchError
from fspad_bench.lossless import exact
from fspad_bench.lossless.oracle import distance
from fspad_bench.lossless.report import ELSEWHERE
from fspad_bench.lossless.scripted import ScriptedTarget


def test_the_reference_is_a_law():
    law = exact.product_law(ScriptedTarget(3), Sampler(0.7), 4)
    assert len(law) == 81
    assert sum(law.values()) == pytest.approx(1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", ["ranked", "drawn, own vocabulary"])
def test_every_rule_keeps_the_law(rule, way):
    checks = [
        check for check in exact.check_rules([way], (0,)) if check.subject == f"{rule}, {way}"
    ]
    assert [check.verdict for check in checks] == ["PASS"]


@pytest.mark.nightly
@pytest.mark.parametrize("way", exact.WAYS)
def test_every_rule_keeps_the_law_of_wide_trees(way):
    assert {check.verdict for check in exact.check_rules([way])} == {"PASS"}


def test_a_drafter_that_is_verified_at_another_temperature_is_far_off():
    class Warm(ScriptedTarget):
        def logits(self, prefix):
            return super().logits(prefix) * 0.8

    law = exact.loop_law(Warm(3), Vanilla(None), exact.LAWS["T=1"])
    assert (
        distance(law, exact.product_law(ScriptedTarget(3), exact.LAWS["T=1"], exact.LENGTH)) > 0.05
    )


def test_decoders_that_can_stand_on_a_script_do(tiny):
    for name, made in (("prompt_lookup", PromptLookup), ("vanilla", Vanilla)):
        found = exact.check_decoder(name, made, tiny)
        assert (found.verdict, "over 5 laws" in found.figure) == ("PASS", True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"verify": "rejection"},
        pytest.param({"verify": "traversal", "depth": 3}, marks=pytest.mark.nightly),
    ],
)
def test_those_that_cannot_stand_on_tiny(options, tiny):
    found = exact.check_decoder("fspad", lambda target: Fspad(target, **options), tiny)
    assert found.verdict == "PASS", found
    assert "on tiny" in found.figure


def test_a_head_of_another_target_is_left_to_other_checks(tiny):
    def make(target):
        raise BenchError("the head does not fit tiny")

    found = exact.check_decoder("fspad", make, tiny)
    assert found.verdict == ELSEWHERE
    assert "does not fit tiny" in found.figure


def test_a_rule_of_its_own_that_is_lossy_is_seen_wherever_it_stands(tiny):
    class Hasty(Fspad):
        def verify(self, tree, logits, sampler, position):
            path, bonus = match(tree, logits, sampler, position)
            for child in tree.offspring[path[-1]]:
                if sampler.law(logits[path[-1]])[tree.tokens[child]] > 0.2:
                    return Accepted(
                        [*path, child], sampler.next(logits[child], position + len(path))
                    )
            return Accepted(path, bonus)

        def __setattr__(self, name, value):
            if name != "verify":
                super().__setattr__(name, value)

    assert exact.check_decoder("hasty", Hasty, tiny).verdict == "FAIL"


def test_a_foreign_engine_has_nothing_to_explore(tiny):
    class Engine:
        def __init__(self, target):
            self.generate = None

    assert exact.check_decoder("engine", Engine, tiny).verdict == "-"


def test_what_would_take_for_ever_is_left_to_other_checks(tiny, monkeypatch):
    monkeypatch.setitem(exact.explore.__globals__, "MOST", 5)
    assert exact.check_decoder("prompt_lookup", PromptLookup, tiny).verdict == "-"


def test_a_drafter_that_is_never_tested_is_vacuous(tiny):
    assert exact.check_decoder("silent", Vanilla, tiny).verdict == "VACUOUS"
