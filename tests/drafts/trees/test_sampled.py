"""Sampled trees: their shape is settled beforehand, their laws are the draft's, their children were drawn from them."""

from collections import Counter

import pytest
import torch

from fspad_bench.core.loop import Context, Limit, generate
from fspad_bench.core.sampling import Dice, Sampler
from fspad_bench.decoders.fspad import Fspad
from fspad_bench.drafts.trees.sampled import draw, fixed_shape

PROMPT = list(range(30, 52))


@pytest.mark.parametrize(
    ("nodes", "depth", "top_k"), [(2, 1, 1), (8, 2, 4), (16, 4, 3), (40, 2, 3)]
)
def test_a_shape_is_closed_and_within_its_bounds(nodes, depth, top_k):
    shape = fixed_shape(nodes, depth, top_k)
    assert len(shape) == len(set(shape)) <= nodes - 1
    assert all(path[:-1] in shape or len(path) == 1 for path in shape)
    assert all((*path[:-1], path[-1] - 1) in shape for path in shape if path[-1])
    assert max(map(len, shape)) <= depth
    assert max(map(max, shape)) < top_k


def test_the_default_shape():
    assert fixed_shape(8, 2, 4) == [(0,), (1,), (2,), (3,), (0, 0), (0, 1), (1, 0)]


def proposed(tiny, head, sampler, **options):
    """The tree of the first round after the prompt, and the drafter."""
    trees = []

    class Seen(Fspad):
        def propose(self, context, budget):
            trees.append(super().propose(context, budget))
            return trees[-1]

    drafter = Seen(tiny, head=str(head), drafting="sampled", **options)
    generate(tiny, drafter, sampler, PROMPT, Limit(8))
    return trees[0], drafter


def test_q_is_the_processed_law_of_the_draft(tiny, heads):
    """Over the target's vocabulary: nothing on the tokens that the draft cannot say."""
    tree, drafter = proposed(tiny, heads["fspad"], Sampler(0.8, top_p=0.95), nodes=8, depth=2)
    inner = [node for node in range(len(tree)) if tree.offspring[node]]
    outside = [token for token in range(97) if token not in drafter.vocabulary.tolist()]
    assert outside
    assert len(inner) > 1
    for node in inner:
        assert float(tree.q[node].sum()) == pytest.approx(1)
        assert not tree.q[node][outside].any()
        assert all(tree.q[node][tree.tokens[child]] > 0 for child in tree.offspring[node])
    assert len({tuple(tree.q[node].tolist()) for node in inner}) == len(inner)


def test_first_children_have_the_law_q(tiny, heads):
    first, law = Counter(), None
    drafter = Fspad(tiny, head=str(heads["fspad"]), drafting="sampled", depth=1)
    for seed in range(400):
        scores = tiny.prefill(PROMPT, 4)
        context = Context([*PROMPT, 7], len(PROMPT), Sampler(1.0, top_k=3, seed=seed))
        drafter.begin(context, scores)
        tree = drafter.propose(context, 3)
        first[tree.tokens[1]] += 1
        assert law is None or torch.equal(law, tree.q[0])
        law = tree.q[0]
    assert law.count_nonzero() == 3
    for token, count in first.items():
        expected = 400 * float(law[token])
        assert abs(count - expected) < 4.5 * expected**0.5


def test_draws_are_without_replacement_and_stop_when_nothing_is_left():
    law = torch.tensor([0.0, 0.7, 0.3, 0.0]).double()
    assert sorted(draw(law, 3, Dice((1, 2), 3))) == [1, 2]


@pytest.mark.parametrize("verify", ["match", "rejection", "traversal"])
def test_at_temperature_0_the_tree_is_a_chain_of_the_best(tiny, heads, verify):
    tree, _ = proposed(tiny, heads["fspad"], Sampler(), depth=3, verify=verify)
    assert tree.parents == [-1, 0, 1, 2]
