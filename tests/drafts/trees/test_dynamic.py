"""A dynamic tree is drafted level by level, from as many paths as its policy says."""

import torch

from fspad_bench.core.protocols import Context
from fspad_bench.core.sampling import Sampler
from fspad_bench.drafts.sizing.policy import FixedTree
from fspad_bench.drafts.trees.dynamic import dynamic_tree

IDS = torch.arange(10, 20)


class Falling:
    """Every row's children are the same: the first token likeliest, each further one less so."""

    ids = IDS

    def __init__(self):
        self.expanded = []

    def absorb(self):
        return -torch.arange(10.0)[None]

    def expand(self, tokens, rows):
        self.expanded.append((list(tokens), list(rows)))
        return -torch.arange(10.0).expand(len(tokens), -1)


class Narrow(FixedTree):
    """A level from the best two paths, then one from the best alone."""

    def deepen(self, chances, frontier, levels):
        assert list(frontier) == sorted(frontier, reverse=True)
        return max(0, 3 - levels)


def drafted(policy, budget=8):
    levels = Falling()
    context = Context([3, 4], 1, Sampler(0.0))
    made = dynamic_tree(levels, context, policy=policy, budget=budget, top_k=3, with_noise=True)
    return levels.expanded, made


def test_a_level_is_drafted_from_as_many_paths_as_its_policy_says():
    expanded, made = drafted(Narrow(16, 8))
    assert expanded == [([10, 11], [0, 0]), ([10], [0])]
    assert made.levels == 3
    assert max(made.tree.depths) == 3
    tree = made.tree
    above = {tree.tokens[parent] for parent in tree.parents[1:] if tree.depths[parent] == 1}
    assert above == {10, 11}


def test_a_fixed_tree_is_drafted_from_all_of_them():
    expanded, made = drafted(FixedTree(16, 3))
    assert [len(tokens) for tokens, _ in expanded] == [3, 3]
    assert made.levels == 3


def test_no_level_is_drafted_beyond_the_budget():
    expanded, made = drafted(FixedTree(16, 8), budget=2)
    assert (len(expanded), made.levels) == (1, 2)
