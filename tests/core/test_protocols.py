"""The protocols: the end of a generation, and what counts as a drafter with which rule."""

from __future__ import annotations

import pytest
import torch

from fspad_bench.core.protocols import Context, Drafter, Limit, as_drafter, as_engine
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted, Rule, match, rejection, traversal


class TestLimit:
    def context(self, *new):
        return Context([8, 8, *new], 2)

    def test_room_leaves_a_place_for_the_bonus(self):
        assert Limit(5).room(self.context(1)) == 3
        assert Limit(5).room(self.context(1, 2, 3, 4)) == 0

    def test_reached(self):
        assert not Limit(3, frozenset([7])).reached(self.context(7, 1))
        assert Limit(3, frozenset([7])).reached(self.context(1, 7))
        assert Limit(3).reached(self.context(1, 2, 3))

    def test_a_stop_in_the_prompt_does_not_count(self):
        assert Limit(9, frozenset([8])).cut(self.context(1), [2, 3]) == [2, 3]

    @pytest.mark.parametrize(
        ("new", "kept"),
        [
            ([1, 2], [1, 2]),
            ([1, 2, 3, 4], [1, 2, 3]),
            ([1, 7, 2], [1, 7]),
            ([7, 7], [7]),
            ([1, 2, 3, 7], [1, 2, 3]),
        ],
    )
    def test_cut(self, new, kept):
        assert Limit(4, frozenset([7, 9])).cut(self.context(5), new) == kept

    @pytest.mark.parametrize(
        ("new", "kept"),
        [
            ([1, 2], [1, 2]),
            ([1, 2, 3, 4], [1, 2, 3]),  # 5 + 1 + 2 + 3 = 11
            ([6, 1], [6]),
            ([7, 6], [7]),
            ([1, 9, 2], [1, 9]),
        ],
    )
    def test_a_stop_is_asked_of_all_new_tokens_in_turn(self, new, kept):
        limit = Limit(9, frozenset([9]), stop=lambda tokens: sum(tokens) >= 11)
        assert limit.cut(self.context(5), new) == kept
        assert limit.reached(self.context(5, *kept)) == (kept != [1, 2])


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_limit_is_at_least_one_token(tokens):
    with pytest.raises(ValueError, match="at least 1"):
        Limit(tokens)


def bonus_only(tree, logits, sampler, position):
    return Accepted([0], sampler.next(logits[0], position))


class TestRuleOfADrafter:
    def test_match_by_default(self):
        assert Drafter.rule is Drafter().rule is match

    def test_a_rule_as_class_attribute_is_not_bound(self):
        class Drawing(Drafter):
            rule = rejection

        assert Drawing().rule is rejection

    def test_a_plain_function_becomes_a_rule(self):
        class Own(Drafter):
            rule = bonus_only

        assert isinstance(Own().rule, Rule)
        assert Own().rule.name == "bonus_only"
        tree = Tree([9, 2], [-1, 0])
        assert Own().rule(tree, torch.eye(3)[[2, 1]], Sampler(), 4) == ([0], 2)

    def test_a_function_of_other_arguments_is_refused(self):
        with pytest.raises(TypeError, match="takes \\(tree, logits, sampler, position\\)"):

            class Wrong(Drafter):
                def rule(self, tree, logits, sampler, position):
                    return Accepted([0], 0)

    def test_an_adapted_object_keeps_its_rule(self):
        class Plain:
            def propose(self, context, budget):
                return Tree.root(context.tokens[-1])

        plain = Plain()
        assert as_drafter(plain).rule is match
        plain.rule = traversal
        assert as_drafter(plain).rule is traversal
        plain.rule = bonus_only
        assert as_drafter(plain).rule.name == "bonus_only"


def test_what_has_no_propose_is_no_drafter():
    class Engine:
        def generate(self, prompt, sampler, limit):
            raise NotImplementedError

    engine = Engine()
    with pytest.raises(TypeError, match="Engine has no propose"):
        as_drafter(engine)
    assert as_engine(engine) is engine
    assert as_engine(Drafter()) is None
    assert as_engine(object()) is None
    with pytest.raises(TypeError, match="Drafter has no propose"):
        Drafter().propose(None, 1)


@pytest.mark.parametrize(
    ("sampler", "greedy"), [(None, True), (Sampler(0.0), True), (Sampler(0.7), False)]
)
def test_a_context_is_greedy_unless_its_sampler_draws(sampler, greedy):
    assert Context([1], 1, sampler).greedy == greedy
