"""Token recycling fills a fixed tree with candidates that the target ranked highest."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from fspad_bench.core.protocols import Context, Step
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted
from fspad_bench.decoders.token_recycling import TokenRecycling, read_rates, template
from fspad_bench.engine.session import Scores
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.util.errors import BenchError

TARGET = ScriptedTarget()
TWO = {"nodes": 7, "depth": 2, "acceptance": "0.5,0.5"}  # the whole binary tree of two levels


def scores(*rows):
    """Return scores over 8 tokens; a row names its best tokens in order."""
    logits = torch.zeros(len(rows), 8)
    for row, best in zip(logits, rows, strict=True):
        for rank, token in enumerate(best):
            row[token] = 10.0 - rank
    return Scores(logits, logits)


def started(read, first, best, **options):
    """Return a drafter after the prefill of a prompt, and its context."""
    drafter = TokenRecycling(TARGET, **TWO | options)
    context = Context([*read, first], len(read), Sampler())
    drafter.begin(context, scores(best))
    return drafter, context


def children(tree, node=0):
    return [tree.tokens[child] for child in tree.offspring[node]]


def observed(drafter, context, tree, rows, path):
    drafter.observe(Step(context, tree, scores(*rows), Accepted(path, 0)))


def test_all_nodes_of_a_step_are_learned_from():
    drafter, context = started([1], 2, (2, 3))
    assert children(drafter.propose(context, 9)) == []
    observed(drafter, context, Tree([2, 5, 6], [-1, 0, 0]), [(1, 2), (4, 5), (7, 3)], [0])
    tree = drafter.propose(context, 9)
    assert children(tree) == [1, 2]
    assert children(tree, 1) == [2, 3]  # from the prefill
    assert children(tree, 2) == [1, 2]
    context.tokens.append(6)
    assert children(drafter.propose(context, 9)) == [7, 3]  # of a refused node


def test_a_later_step_replaces_an_entry():
    drafter, context = started([1], 2, (2, 3))
    for best in ((4, 5), (6, 7)):
        observed(drafter, context, Tree.root(2), [best], [0])
    assert children(drafter.propose(context, 9)) == [6, 7]


def test_of_several_nodes_of_a_token_the_accepted_one_counts():
    drafter, context = started([1], 2, (2, 3))
    tree = Tree([2, 3, 3, 4], [-1, 0, 1, 0])
    observed(drafter, context, tree, [(3, 4), (5, 6), (7, 0), (1, 2)], [0, 1])
    context.tokens.append(3)
    assert children(drafter.propose(context, 9)) == [5, 6]


def test_the_prompt_fills_the_table_with_what_followed_the_latest_first():
    prompt = [1, 4, 1, 5, 1, 6, 2]
    drafter, context = started(prompt, 1, (3, 0))
    assert children(drafter.propose(context, 9)) == [6, 5]
    drafter, context = started(prompt, 1, (3, 0), prompt=False)
    assert children(drafter.propose(context, 9)) == []


@pytest.mark.parametrize(("scope", "expected"), [("prompt", []), ("run", [3, 0])])
def test_the_table_lasts_as_long_as_the_scope(scope, expected):
    drafter, _ = started([7], 1, (3, 0), scope=scope)
    context = Context([5, 7], 1, Sampler())
    drafter.begin(context, scores((1, 2)))
    assert children(drafter.propose(context, 9)) == expected


def test_sampled_candidates_are_ranked_with_the_noise_of_their_position():
    sampler = Sampler(2.0, seed=1)
    options = {"nodes": 3, "depth": 1, "acceptance": ",".join(["0.1"] * 8)}
    drafter, context = started([1], 2, (), **options)
    context.sampler = sampler
    logits = torch.arange(8) / 4.0
    drafter.observe(Step(context, Tree.root(2), Scores(logits[None], logits), Accepted([0], 0)))
    noisy = logits + 2.0 * sampler.noise(context.position, torch.arange(8))
    assert children(drafter.propose(context, 9)) == noisy.topk(2).indices.tolist()


def test_depth_is_cut_at_the_budget():
    drafter, context = started([1, 1, 1, 1], 1, (1, 2), acceptance="0.9", depth=5)
    assert drafter.propose(context, 9).depths == [0, 1, 2, 3, 4, 5]
    assert drafter.propose(context, 2).depths == [0, 1, 2]
    assert len(drafter.propose(context, 0)) == 1


@pytest.mark.parametrize("nodes", [2, 5, 9, 14])
def test_the_template_has_the_most_probable_paths(nodes):
    rates = [0.5, 0.2, 0.1]
    slots = template(rates, nodes, 3)
    values = [1.0]
    for parent, rank, depth in slots:
        values.append(values[parent] * rates[rank])
        assert depth == (slots[parent - 1].depth if parent else 0) + 1
    every = [p for n in (1, 2, 3) for p in product(rates, repeat=n)]
    best = sorted((torch.tensor(p).prod().item() for p in every), reverse=True)
    assert sorted(values[1:], reverse=True) == pytest.approx(best[: nodes - 1])
    assert [slot.depth for slot in slots] == sorted(slot.depth for slot in slots)


@pytest.mark.parametrize("text", ["", "a", "0.1,0.2", "0.5,0", "1.5", "0.9,0.9", "nan"])
def test_rates_that_are_none_are_refused(text):
    with pytest.raises(BenchError, match="acceptance is"):
        read_rates(text)


@pytest.mark.parametrize("options", [{"nodes": 1}, {"nodes": 129}, {"depth": 0}, {"depth": 17}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(BenchError, match="token_recycling takes"):
        TokenRecycling(TARGET, **options)
