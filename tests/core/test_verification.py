"""The rules of verification on hand-made trees, and their bookkeeping as objects."""

import pytest
import torch
from torch import tensor

from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import (
    RULES,
    Accepted,
    drawn,
    match,
    rejection,
    rule_named,
    traversal,
    without,
)
from fspad_bench.lossless.oracle import explore
from fspad_bench.util.errors import BenchError

UNIT = Sampler(1.0)
TARGET = tensor([1 / 3, 2 / 3], dtype=torch.float64)
DRAFT = tensor([2 / 3, 1 / 3], dtype=torch.float64)


def logits(rows):
    return torch.log(torch.stack(rows))


def chain(oracle, length):
    """Draw a chain from DRAFT, whatever came before."""
    tokens = [oracle.draw(DRAFT) for _ in range(length)]
    return Tree(
        [0, *tokens], range(-1, length), torch.stack([DRAFT] * length + [torch.zeros(2).double()])
    )


def expected_accepted(verify, length):
    def play(oracle):
        return (
            len(verify(chain(oracle, length), logits([TARGET] * (length + 1)), oracle, 1).path) - 1,
        )

    return sum(output[0] * p for output, p in explore(UNIT, play).items())


def test_the_papers_example_of_block_verification():
    """Sun et al. 2024, section 1: two drafted tokens give 10/9 by tokens, 11/9 by blocks."""
    assert expected_accepted(rejection, 2) == pytest.approx(10 / 9)
    assert expected_accepted(traversal, 2) == pytest.approx(11 / 9)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_traversal_accepts_at_least_as_much_as_rejection(length):
    assert expected_accepted(traversal, length) >= expected_accepted(rejection, length) - 1e-12


@pytest.mark.parametrize("verify", RULES.values(), ids=RULES)
def test_at_temperature_0_every_rule_is_greedy(verify):
    tree = Tree([9, 1, 2, 3, 0], [-1, 0, 0, 2, 3])
    rows = torch.eye(5).double()[[2, 0, 3, 4, 1]]
    assert verify(tree, rows, Sampler(), 4) == ([0, 2, 3], 4)


@pytest.mark.parametrize("verify", [rejection, traversal])
def test_draws_from_the_target_are_always_accepted(verify):
    tree = Tree([0, 1, 0], [-1, 0, 1], torch.stack([TARGET, TARGET, torch.zeros(2).double()]))
    kept = explore(UNIT, lambda oracle: (len(verify(tree, logits([TARGET] * 3), oracle, 1).path),))
    assert kept[3,] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("verify", [rejection, traversal])
def test_tokens_of_probability_0_are_never_accepted(verify):
    never = tensor([1.0, 0.0]).double()
    tree = Tree([0, 1], [-1, 0], torch.stack([DRAFT, torch.zeros(2).double()]))
    outputs = explore(
        UNIT,
        lambda oracle: (*verify(tree, logits([never, never]), oracle, 1).path, oracle.draw(never)),
    )
    assert set(outputs) == {(0, 0)}


def test_children_are_tried_in_draw_order_without_replacement():
    q = tensor([0.5, 0.3, 0.2]).double()
    tree = Tree([0, 2, 0, 1], [-1, 0, 0, 0], torch.stack([q] * 4))
    tried = [(tree.tokens[child], left.tolist()) for child, left in drawn(tree, 0, q)]
    assert [token for token, _ in tried] == [2, 0, 1]
    assert tried[1][1] == pytest.approx([0.625, 0.375, 0.0])
    assert tried[2][1] == pytest.approx([0.0, 1.0, 0.0])


def test_children_without_q_count_as_certain():
    tree = Tree([0, 2, 1], [-1, 0, 0])
    assert [left.tolist() for _, left in drawn(tree, 0, torch.zeros(3).double())] == [
        [0, 0, 1],
        [0, 1, 0],
    ]


def test_nothing_is_left_of_a_distribution_over_one_token():
    assert not without(tensor([0.0, 1.0]).double(), 1).any()


def test_match_samples_each_position_once():
    class Counting(Sampler):
        def next(self, logits, position):
            positions.append(position)
            return super().next(logits, position)

    positions = []
    match(Tree([9, 1, 0], [-1, 0, 1]), torch.eye(3).double()[[1, 0, 2]], Counting(), 7)
    assert positions == [7, 8, 9]


def test_an_unknown_rule_is_refused_with_the_near_match():
    with pytest.raises(BenchError, match="unknown verification 'rejecton'") as caught:
        rule_named("rejecton")
    assert "did you mean 'rejection'" in caught.value.hint


def test_a_child_that_could_not_have_been_drawn_is_refused():
    tree = Tree([0, 1], [-1, 0], torch.stack([tensor([1.0, 0.0]).double()] * 2))
    for verify in (rejection, traversal):
        with pytest.raises(ValueError, match="token 1 was drawn from a distribution"):
            verify(tree, logits([TARGET, TARGET]), UNIT, 1)


def test_rules_are_known_by_name_and_keep_their_docstrings():
    assert list(RULES) == ["match", "rejection", "traversal"]
    for name, known in RULES.items():
        assert rule_named(name) is known
        assert known.name == name
        assert repr(known) == f"Rule({name})"
        assert known.__doc__


class TestMatch:
    LOGITS = torch.zeros(6, 7).scatter_(1, torch.tensor([[2], [0], [5], [1], [6], [3]]), 1.0)

    def test_walks_where_a_child_agrees(self):
        tree = Tree([9, 0, 2, 5, 4, 5], [-1, 0, 0, 1, 2, 2])
        assert match(tree, self.LOGITS, Sampler(), 0) == Accepted([0, 2, 5], 3)

    def test_the_bonus_is_sampled_at_the_last_accepted_node(self):
        assert match(Tree.root(9), self.LOGITS, Sampler(), 0) == Accepted([0], 2)
        assert match(Tree([9, 1], [-1, 0]), self.LOGITS, Sampler(), 0) == Accepted([0], 2)
        assert match(Tree([9, 2], [-1, 0]), self.LOGITS, Sampler(), 0) == Accepted([0, 1], 0)

    def test_samples_only_the_nodes_it_reaches_at_their_positions(self):
        calls = []

        class Oracle:
            def next(self, logits, position):
                calls.append((int(logits[0]), position))
                return {0: 1, 2: 2, 5: 3}[int(logits[0])]

        tree = Tree([9, 0, 1, 1, 3, 2], [-1, 0, 0, 1, 2, 2])
        rows = torch.arange(6.0)[:, None].expand(6, 7)
        assert match(tree, rows, Oracle(), 40) == Accepted([0, 2, 5], 3)
        assert calls == [(0, 40), (2, 41), (5, 42)]
