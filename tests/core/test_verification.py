"""The rules on hand-made trees: what they keep, what they draw, and where they must agree."""

import pytest
import torch
from torch import tensor

from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import RULES, drawn, match, rejection, rule, traversal, without
from fspad_bench.errors import BenchError
from fspad_bench.lossless.oracle import explore

UNIT = Sampler(1.0)
TARGET, DRAFT = (
    tensor([1 / 3, 2 / 3], dtype=torch.float64),
    tensor([2 / 3, 1 / 3], dtype=torch.float64),
)


def logits(rows):
    return torch.log(torch.stack(rows))


def chain(oracle, length):
    """A chain of draws from DRAFT, whatever came before."""
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
    """Sun et al. 2024, section 1: p = (1/3, 2/3), q = (2/3, 1/3), two tokens: 10/9 by tokens, 11/9 by blocks."""
    assert expected_accepted(rejection, 2) == pytest.approx(10 / 9)
    assert expected_accepted(traversal, 2) == pytest.approx(11 / 9)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_traversal_never_keeps_less(length):
    assert expected_accepted(traversal, length) >= expected_accepted(rejection, length) - 1e-12


@pytest.mark.parametrize("verify", RULES.values(), ids=RULES)
def test_at_temperature_0_every_rule_is_greedy(verify):
    tree = Tree([9, 1, 2, 3, 0], [-1, 0, 0, 2, 3])
    rows = torch.eye(5).double()[[2, 0, 3, 4, 1]]
    assert verify(tree, rows, Sampler(), 4) == ([0, 2, 3], 4)


@pytest.mark.parametrize("verify", [rejection, traversal])
def test_a_draft_that_is_the_target_is_always_kept(verify):
    tree = Tree([0, 1, 0], [-1, 0, 1], torch.stack([TARGET, TARGET, torch.zeros(2).double()]))
    kept = explore(UNIT, lambda oracle: (len(verify(tree, logits([TARGET] * 3), oracle, 1).path),))
    assert kept[3,] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("verify", [rejection, traversal])
def test_what_the_target_forbids_is_never_kept(verify):
    never = tensor([1.0, 0.0]).double()
    tree = Tree([0, 1], [-1, 0], torch.stack([DRAFT, torch.zeros(2).double()]))
    found = explore(
        UNIT,
        lambda oracle: (*verify(tree, logits([never, never]), oracle, 1).path, oracle.draw(never)),
    )
    assert set(found) == {(0, 0)}


def test_children_are_tried_in_draw_order_from_what_is_left():
    q = tensor([0.5, 0.3, 0.2]).double()
    tree = Tree([0, 2, 0, 1], [-1, 0, 0, 0], torch.stack([q] * 4))
    tried = [(tree.tokens[child], left.tolist()) for child, left in drawn(tree, 0, q)]
    assert [token for token, _ in tried] == [2, 0, 1]
    assert tried[1][1] == pytest.approx([0.625, 0.375, 0.0])
    assert tried[2][1] == pytest.approx([0.0, 1.0, 0.0])


def test_children_that_nobody_drew_are_certain():
    tree = Tree([0, 2, 1], [-1, 0, 0])
    assert [left.tolist() for _, left in drawn(tree, 0, torch.zeros(3).double())] == [
        [0, 0, 1],
        [0, 1, 0],
    ]


def test_nothing_is_left_of_a_law_of_one_token():
    assert not without(tensor([0.0, 1.0]).double(), 1).any()


def test_match_asks_each_position_once():
    class Asked(Sampler):
        def next(self, logits, position):
            positions.append(position)
            return super().next(logits, position)

    positions = []
    match(Tree([9, 1, 0], [-1, 0, 1]), torch.eye(3).double()[[1, 0, 2]], Asked(), 7)
    assert positions == [7, 8, 9]


def test_an_unknown_rule_is_refused_with_the_near_match():
    with pytest.raises(BenchError, match="unknown verification 'rejecton'") as caught:
        rule("rejecton")
    assert "did you mean 'rejection'" in caught.value.hint
