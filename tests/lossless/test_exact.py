"""Exact laws of the production loop, and that a distance is found where there is one."""

import pytest

from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.lossless import exact
from fspad_bench.lossless.oracle import distance
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.sampling import Sampler
from fspad_bench.verification import RULES


def test_the_reference_is_a_law():
    law = exact.product_law(ScriptedTarget(3), Sampler(0.7), 4)
    assert len(law) == 81
    assert sum(law.values()) == pytest.approx(1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", ["ranked", "drawn, own vocabulary"])
def test_every_rule_keeps_the_law(rule, way):
    checks = [check for check in exact.check_rules([way], (0,)) if check.subject == f"{rule}, {way}"]
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
    assert distance(law, exact.product_law(ScriptedTarget(3), exact.LAWS["T=1"], exact.LENGTH)) > 0.05


def test_decoders_that_can_stand_on_a_script_do():
    assert exact.check_decoder("prompt_lookup", PromptLookup).verdict == "PASS"
    assert exact.check_decoder("vanilla", Vanilla).verdict == "PASS"


def test_those_that_cannot_are_held_to_something_else():
    def needs_weights(target):
        return target.model.weight

    assert exact.check_decoder("eagle", needs_weights).verdict == "-"


def test_a_drafter_that_is_never_tested_is_vacuous():
    assert exact.check_decoder("silent", Vanilla).verdict == "VACUOUS"
