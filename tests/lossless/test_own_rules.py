"""A decoder's own rule is asked at every depth, on trees like its own; silence proves nothing."""

import pytest

from fspad_bench.core.protocols import Drafter
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Rule, match, rejection
from fspad_bench.decoders.build import Decoder, build_decoder
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.lossless import certify, choice_faults, depths, distribution

PROMPT = [40, 41] * 12


class Silent(Drafter):
    def propose(self, context, budget):
        return Tree.root(context.tokens[-1])


def deciding(tiny, rule):
    drafter = PromptLookup(tiny)
    drafter.rule = rule
    return Decoder("own", tiny, drafter=drafter)


def verdicts(decoder, tiny):
    checks = certify._check_rule("own", lambda: decoder, tiny, PROMPT)
    return {check.name: check.verdict for check in checks}


def test_a_rule_that_is_right_to_depth_three_is_refused(tiny):
    decoder = deciding(tiny, Rule(choice_faults.likely_from_depth_four))
    assert verdicts(decoder, tiny) == {depths.NAME: "FAIL", "ties": "PASS"}


def test_a_rule_that_breaks_ties_its_own_way_is_refused(tiny):
    decoder = deciding(tiny, Rule(choice_faults.ties_to_the_highest_id))
    assert verdicts(decoder, tiny) == {depths.NAME: "PASS", "ties": "FAIL"}


def test_an_exact_rule_of_its_own_passes_on_the_trees_that_it_is_for(tiny):
    assert verdicts(deciding(tiny, Rule(match.verify)), tiny) == {
        depths.NAME: "PASS",
        "ties": "PASS",
    }
    drawing = build_decoder("fspad", tiny, {"fspad": {"verify": "rejection"}})
    assert verdicts(drawing, tiny) == {"ties": "PASS"}  # one of our rules, checked by itself
    drawing.drafter.rule = Rule(rejection.verify)  # known by no name, so checked: drawn children
    assert verdicts(drawing, tiny)[depths.NAME] == "PASS"


@pytest.mark.parametrize(("name", "verdict"), [("silent", "VACUOUS"), ("vanilla", "PASS")])
def test_draws_of_a_decoder_that_drafted_nothing_are_vacuous(name, verdict, tiny):
    decoder = Decoder("silent", tiny, drafter=Silent())
    if name == "vanilla":
        decoder = build_decoder("vanilla", tiny, {})
    check = distribution.check_pit(decoder, tiny, [PROMPT] * 4, 32)
    assert check.verdict == verdict, check.figure
