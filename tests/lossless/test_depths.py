"""Rules at every depth: ours are exact, and one that is wrong from some depth on is named there."""

import pytest
import torch

from fspad_bench.core.verification import RULES, Accepted, Rule, match, rejection
from fspad_bench.lossless import depths


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_our_rules_are_exact_at_every_depth(name, drawn):
    by_depth = dict(depths.distances(RULES[name], drawn=drawn, depths=range(0, 17, 4)))
    assert max(by_depth.values()) < 1e-12


def greedy_from(depth):
    """Rejection, and from a depth on the most likely token for the bonus: wrong there alone."""

    def rule(tree, logits, sampler, position):
        path, bonus = rejection(tree, logits, sampler, position)
        if len(path) > depth:
            bonus = int(logits[path[-1]].argmax())
        return Accepted(path, bonus)

    return Rule(rule)


def test_a_rule_that_is_right_to_some_depth_is_wrong_beyond_it():
    check = depths.check_rule("hasty", greedy_from(6), drawn=True)
    assert check.verdict == "FAIL"
    # a path of depth 4 ends in a node of depth 6 where both children levels are taken
    assert check.figure.endswith("wrong at 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16")


def test_a_rule_that_needs_drawn_children_is_wrong_for_ranked_ones():
    """The check of a decoder's own rule must therefore make the trees that the decoder makes."""

    def trusting(tree, logits, sampler, position):
        q = tree.q if tree.q is not None else torch.full_like(logits, 1 / logits.shape[1])
        return rejection(depths.Tree(tree.tokens, tree.parents, q), logits, sampler, position)

    assert depths.check_rule("trusting", Rule(trusting), drawn=True).verdict == "PASS"
    assert depths.check_rule("trusting", Rule(trusting), drawn=False).verdict == "FAIL"


def test_ties_of_other_rules_are_asked_of_their_greedy_walks():
    cpu = torch.device("cpu")
    for rule in RULES.values():
        assert depths.ties_hold(rule, greedy=True, dtype=torch.float32, device=cpu)
    assert not depths.ties_hold(rejection, greedy=False, dtype=torch.float32, device=cpu)
    assert depths.ties_hold(match, greedy=False, dtype=torch.bfloat16, device=cpu)
