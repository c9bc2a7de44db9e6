"""Proposals become one tree: every path is kept, chances are right, and the size pays most."""

import itertools
import random

import pytest

from fspad_bench.core.tree import Tree
from fspad_bench.drafts.merging import Proposal, TrackRecord, merged, pruned
from fspad_bench.drafts.sizing.policy import best_size

ROOT = 9


def random_proposal(rng, nodes=8):
    tokens = [ROOT]
    parents = [-1]
    likely = [1.0]
    while len(tokens) < nodes:
        parent = rng.randrange(len(tokens))
        token = rng.randrange(4)
        siblings = [t for t, p in zip(tokens, parents, strict=True) if p == parent]
        if token not in siblings:
            tokens.append(token)
            parents.append(parent)
            likely.append(likely[parent] * rng.random())
    return Proposal(Tree(tokens, parents), likely[1:])


def paths(proposal):
    """Return path -> chance of every drafted node."""
    tree, chances = proposal
    found = {}
    for node in range(1, len(tree)):
        path = []
        place = node
        while place:
            path.append(tree.tokens[place])
            place = tree.parents[place]
        found[tuple(reversed(path))] = chances[node - 1]
    return found


@pytest.mark.parametrize("seed", range(8))
def test_the_tree_holds_every_path_with_the_chance_that_one_of_them_is_right(seed):
    rng = random.Random(seed)
    proposals = [random_proposal(rng) for _ in range(3)]
    whole = paths(merged(ROOT, proposals))
    of_each = [paths(proposal) for proposal in proposals]
    assert whole.keys() == set().union(*of_each)
    for path, chance in whole.items():
        failing = 1.0
        for known in of_each:
            failing *= 1 - known.get(path, 0.0)
        limit = whole[path[:-1]] if len(path) > 1 else 1.0
        assert chance == pytest.approx(min(1 - failing, limit))


def test_one_proposal_stays_as_it_is():
    proposal = random_proposal(random.Random(1))
    whole = merged(ROOT, [proposal])
    assert whole.tree == proposal.tree
    assert whole.chances == pytest.approx(proposal.chances)


@pytest.mark.parametrize("seed", range(8))
def test_the_size_is_the_best_of_all(seed):
    rng = random.Random(seed)
    chances = sorted((rng.uniform(0.01, 1) for _ in range(12)), reverse=True)
    forwards = list(itertools.accumulate(rng.uniform(0, 0.2) for _ in range(20)))
    spent = rng.uniform(0, 2)
    rates = [(1 + sum(chances[:n])) / (spent + forwards[n + 1]) for n in range(13)]
    rate, size = best_size(chances, forwards, spent, 12)
    assert rate == pytest.approx(max(rates))
    assert size == rates.index(max(rates))
    assert best_size(chances, forwards, spent, 3)[1] <= 3
    halved = [chance / 2 for chance in chances]
    assert best_size(chances, forwards, spent, 12, 0.5) == pytest.approx(
        best_size(halved, forwards, spent, 12)
    )


@pytest.mark.parametrize("size", range(8))
def test_the_likeliest_nodes_are_kept_with_their_ancestors(size):
    proposal = random_proposal(random.Random(3))
    kept = pruned(proposal, size)
    assert len(kept) == size + 1
    whole = paths(proposal)
    own = paths(Proposal(kept, [0.0] * size))
    left_out = [whole[path] for path in whole.keys() - own.keys()]
    assert all(whole[path] >= max(left_out, default=0) for path in own)


def test_a_record_tells_long_matches_from_short_ones():
    record = TrackRecord()
    short = Tree.chain(ROOT, [1])
    long = Tree.chain(ROOT, [1, 2, 3, 4])
    before = record.chances(long)
    assert before == pytest.approx([0.5, 0.25, 0.125, 0.0625])
    for _ in range(20):
        record.learn(short, [7])
        record.learn(long, [1, 2, 3, 9])
    assert record.chances(short)[0] < 0.1
    assert record.chances(long)[2] > 0.8
    assert record.chances(long)[3] < 0.1


def test_what_was_not_reached_is_not_learned():
    record = TrackRecord()
    tree = Tree.chain(ROOT, [1, 2])
    for _ in range(20):
        record.learn(tree, [7])
    first, second = record.chances(tree)
    assert second / first == pytest.approx(0.5)  # still the first guess


def test_a_second_child_is_another_kind_of_guess():
    record = TrackRecord()
    tree = Tree([ROOT, 1, 2], [-1, 0, 0])
    for _ in range(20):
        record.learn(tree, [2])
    first, second = record.chances(tree)
    assert first < 0.1
    assert second > 0.8


def test_hopes_are_the_chances_that_are_still_possible():
    """What was never tried may always be right; what was tried has its share."""
    record = TrackRecord()
    chain = Tree.chain(1, [2, 3, 4])
    assert record.hopes(chain) == [1.0, 1.0, 1.0]
    for _ in range(6):
        record.learn(chain, [2, 9])  # right once, then wrong
    first, second, third = record.hopes(chain)
    assert first == 1.0
    assert second == third == pytest.approx(2 / 8)
    for hope, chance in zip(record.hopes(chain), record.chances(chain), strict=True):
        assert hope >= chance
    siblings = Tree([1, 2, 3], [-1, 0, 0])
    assert TrackRecord().hopes(siblings) == [1.0, TrackRecord().chances(siblings)[1]]
