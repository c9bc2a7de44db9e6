"""Sampled trees have a shape settled beforehand, and children drawn from the draft."""

from collections import Counter

import pytest
import torch

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Context, Limit
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


def first_tree(tiny, head, sampler, **options):
    """Return the tree of the first step after the prompt, and the drafter."""
    trees = []

    class Recorder(Fspad):
        def propose(self, context, budget):
            trees.append(super().propose(context, budget))
            return trees[-1]

    drafter = Recorder(tiny, head=str(head), **{"drafting": "sampled"} | options)
    generate(tiny, drafter, sampler, PROMPT, Limit(8))
    return trees[0], drafter


def test_q_is_the_processed_distribution_of_the_draft(tiny, heads):
    """Over the target's vocabulary, with 0 for tokens that the draft cannot propose."""
    sampler = Sampler(0.8, top_p=0.95)
    tree, drafter = first_tree(tiny, heads["fspad"], sampler, nodes=8, depth=2)
    inner = [node for node in range(len(tree)) if tree.offspring[node]]
    inside = drafter.draft.ids.tolist()
    outside = [token for token in range(97) if token not in inside]
    assert outside
    assert len(inner) > 1
    for node in inner:
        assert float(tree.q[node].sum()) == pytest.approx(1)
        assert not tree.q[node][outside].any()
        assert all(tree.q[node][tree.tokens[child]] > 0 for child in tree.offspring[node])
    assert len({tuple(tree.q[node].tolist()) for node in inner}) == len(inner)


def test_first_children_are_distributed_as_q(tiny, heads):
    counts = Counter()
    q = None
    drafter = Fspad(tiny, head=str(heads["fspad"]), drafting="sampled", depth=1)
    with tiny.session(len(PROMPT)) as session:
        scores = session.prefill(PROMPT)
        for seed in range(400):
            context = Context([*PROMPT, 7], len(PROMPT), Sampler(1.0, top_k=3, seed=seed))
            drafter.begin(context, scores)
            tree = drafter.propose(context, 3)
            counts[tree.tokens[1]] += 1
            assert q is None or torch.equal(q, tree.q[0])
            q = tree.q[0]
    assert q.count_nonzero() == 3
    for token, count in counts.items():
        expected = 400 * float(q[token])
        assert abs(count - expected) < 4.5 * expected**0.5


def test_draws_are_without_replacement_and_stop_when_nothing_is_left():
    q = torch.tensor([0.0, 0.7, 0.3, 0.0]).double()
    assert sorted(draw(q, 3, Dice((1, 2), 3))) == [1, 2]


@pytest.mark.parametrize("verify", ["match", "rejection", "traversal"])
def test_at_temperature_0_the_tree_is_the_ranked_one(tiny, heads, verify):
    """Drawn from a distribution of one token, it would be a chain."""
    tree, _ = first_tree(tiny, heads["fspad"], Sampler(), depth=3, verify=verify)
    ranked, _ = first_tree(tiny, heads["fspad"], Sampler(), depth=3, drafting="ranked")
    assert (tree.tokens, tree.parents, tree.q) == (ranked.tokens, ranked.parents, None)
