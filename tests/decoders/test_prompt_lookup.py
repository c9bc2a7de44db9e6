"""Prompt lookup proposes what followed the latest occurrence of the longest known suffix."""

from __future__ import annotations

import random

import pytest

from fspad_bench.core.protocols import Context, Step
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted
from fspad_bench.decoders.prompt_lookup import PromptLookup
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.util.errors import BenchError

TARGET = ScriptedTarget()


def by_definition(tokens: list[int], ngram: int, shortest: int, length: int) -> list[int]:
    for size in range(ngram, shortest - 1, -1):
        ends = [
            end
            for end in range(size, len(tokens))
            if tokens[end - size : end] == tokens[len(tokens) - size :]
        ]
        if ends:
            text = list(tokens)
            while len(text) < ends[-1] + length:
                text.append(text[len(text) - len(tokens) + ends[-1]])
            return text[ends[-1] : ends[-1] + length]
    return []


def draft(drafter: PromptLookup, tokens: list[int], budget: int = 99) -> list[int]:
    tree = drafter.propose(Context(tokens, 0), budget)
    assert tree.tokens[0] == tokens[-1]
    assert list(tree.parents) == list(range(-1, len(tree) - 1))
    return list(tree.tokens[1:])


def started(tokens: list[int], **options: int) -> PromptLookup:
    drafter = PromptLookup(TARGET, **options)
    drafter.begin(Context(tokens, 0), None)
    return drafter


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 9, 1, 2, 3], [9, 1, 2, 3, 9, 1, 2, 3]),  # the copy goes on into itself
        ([2, 3, 8, 1, 2, 3, 9, 2, 3], [9, 2, 3, 9, 2, 3, 9, 2]),  # the latest of two
        (
            [1, 2, 3, 7, 2, 3, 8, 1, 2, 3],
            [7, 2, 3, 8, 1, 2, 3, 7],
        ),  # three tokens beat the later two
        ([1, 2, 3, 4], []),
        ([4, 4], []),
        ([4, 4, 4], [4] * 8),
        ([4], []),
        ([1, 3, 2, 3], []),  # one token is too short a match
    ],
)
def test_by_hand(tokens, expected):
    assert draft(started(tokens), tokens) == expected


@pytest.mark.parametrize(
    "options", [{}, {"ngram": 1, "shortest": 1}, {"ngram": 5, "shortest": 1, "length": 3}]
)
@pytest.mark.parametrize("alphabet", [1, 2, 3, 6])
def test_equals_the_definition(alphabet, options):
    rng = random.Random(alphabet)
    settings = {"ngram": 3, "shortest": 2, "length": 8, **options}
    for _ in range(150):
        tokens = [rng.randrange(alphabet) for _ in range(rng.randrange(1, 30))]
        assert draft(started(tokens, **options), tokens) == by_definition(tokens, **settings)


def test_observing_equals_starting_anew():
    rng = random.Random(0)
    context = Context([rng.randrange(3) for _ in range(4)], 0)
    drafter = started(context.tokens)
    for _ in range(60):
        context.tokens += [rng.randrange(3) for _ in range(rng.randrange(1, 5))]
        drafter.observe(Step(context, Tree.root(0), None, Accepted([0], 0)))
        assert draft(drafter, context.tokens) == draft(started(context.tokens), context.tokens)


@pytest.mark.parametrize("budget", [0, 1, 3, 8, 20])
def test_stays_within_budget_and_length(budget):
    tokens = [*range(12), 0, 1, 2]
    assert draft(started(tokens), tokens, budget) == list(range(3, 12))[: min(budget, 8)]


def test_a_new_prompt_starts_from_nothing():
    drafter = started([1, 2, 3, 9, 1, 2, 3])
    drafter.begin(Context([5, 1, 2, 3], 0), None)
    assert draft(drafter, [5, 1, 2, 3]) == []


@pytest.mark.parametrize(
    "options",
    [
        {"shortest": 0},
        {"ngram": 1},
        {"ngram": 2, "shortest": 3},
        {"length": 0},
        {"length": -1},
        {"length": 128},  # a tree has 128 nodes, the root among them
        {"length": 200},
        {"ngram": 65},
        {"ngram": 10**9},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(BenchError, match="prompt_lookup takes"):
        PromptLookup(TARGET, **options)
