"""Suffix decoding drafts what followed, as far as it is expected to be accepted."""

from __future__ import annotations

import random

import pytest

from fspad_bench.core.protocols import Context, Step
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted
from fspad_bench.decoders import suffix
from fspad_bench.decoders.suffix import Suffix
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.util.errors import BenchError

TARGET = ScriptedTarget()


def started(tokens, prompt_length=0, **options):
    drafter = Suffix(TARGET, **options)
    drafter.begin(Context(list(tokens), prompt_length), None)
    return drafter


def paths(tree):
    """Return each node's path from the root, the root's token left out, in the tree's order."""
    paths = [()]
    for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths[1:]


def draft(drafter, tokens, budget=99):
    tree = drafter.propose(Context(list(tokens), 0), budget)
    assert tree.tokens[0] == tokens[-1]
    return paths(tree)


def probability(text, path, doubt, least):
    """Return the product of p along a path, by searches through the text.

    Each token after the longest suffix that something followed, then after shorter ones, until
    less than `least` is left.
    """
    product = 1.0
    behind = longest_followed(text, text)
    for token in path:
        p = 0.0
        mass = 1.0
        longest = None
        while behind and product * mass >= least:
            followers = followers_of(text, behind)
            escape = doubt / len(behind)
            if followers:
                p += mass * followers.count(token) / (len(followers) + escape)
                mass *= escape / (len(followers) + escape)
                if token in followers and longest is None:
                    longest = [*behind, token]
            behind = next_shorter(text, behind)
        product *= p
        behind = longest or []
    return product


def followers_of(text, word):
    n = len(word)
    return [text[i] for i in range(n, len(text)) if text[i - n : i] == word]


def occurrences(text, word):
    n = len(word)
    return sum(text[i - n : i] == word for i in range(n, len(text) + 1))


def longest_followed(text, word):
    """Return the longest suffix of a word that occurs in the text before its end."""
    return next((word[i:] for i in range(len(word)) if followers_of(text, word[i:])), [])


def next_shorter(text, word):
    """Return the longest proper suffix that occurs more often."""
    count = occurrences(text, word)
    return next((word[i:] for i in range(1, len(word)) if occurrences(text, word[i:]) > count), [])


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4], []),
        ([1, 2, 3, 9, 1, 2, 3], [(9,), (9, 1), (9, 1, 2), (9, 1, 2, 3), (9, 1, 2, 3, 9)]),
        ([4, 4, 4, 4], [(4,), (4, 4), (4, 4, 4)]),  # the loop goes on into itself
        ([1, 2, 8, 1, 2, 9, 1, 2], [(9,), (8,)]),  # the latest first, where counts are equal
        ([1, 2, 8, 1, 2, 8, 1, 2, 9, 1, 2], [(8,), (8, 1), (8, 1, 2)]),  # the more frequent one
    ],
)
def test_by_hand(tokens, expected):
    assert draft(started(tokens, nodes=6), tokens)[: len(expected)] == expected
    if not expected:
        assert draft(started(tokens), tokens) == []


@pytest.mark.parametrize("doubt", [0.5, 2.0])
@pytest.mark.parametrize("symbols", [2, 3, 5])
def test_the_tree_holds_the_most_probable_paths(symbols, doubt):
    rng = random.Random(symbols)
    for _ in range(12):
        tokens = [rng.randrange(symbols) for _ in range(rng.randrange(2, 24))]
        drafter = started(tokens, nodes=9, least=0.1, doubt=doubt)
        tree = draft(drafter, tokens)
        found = [probability(tokens, path, doubt, 0.1) for path in tree]
        assert found == sorted(found, reverse=True)
        assert all(p >= 0.1 for p in found)
        others = {
            (*path, token)
            for path in [(), *tree]
            for token in range(symbols)
            if (*path, token) not in tree
        }
        bound = found[-1] if len(tree) == 8 else 0.1
        assert all(probability(tokens, path, doubt, 0.1) <= bound + 1e-12 for path in others)


def test_a_longer_match_drafts_further():
    short = [7, 1, 2, 3, 4, 5, 6, 7]
    long = [8, 9, 7, 1, 2, 3, 4, 5, 6, 8, 9, 7]
    assert len(draft(started(short), short)) < len(draft(started(long), long))


def test_observing_equals_starting_anew():
    rng = random.Random(0)
    context = Context([rng.randrange(3) for _ in range(4)], 0)
    drafter = started(context.tokens)
    for _ in range(40):
        context.tokens += [rng.randrange(3) for _ in range(rng.randrange(1, 5))]
        drafter.observe(Step(context, Tree.root(0), None, Accepted([0], 0)))
        assert draft(drafter, context.tokens) == draft(started(context.tokens), context.tokens)


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_stays_within_the_budget(budget):
    tokens = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    depths = [len(path) for path in draft(started(tokens), tokens, budget)]
    assert max(depths, default=0) == budget


class TestScope:
    FIRST = (1, 2, 3, 4, 5, 6, 7)

    def second(self, scope, prompt_length=0):
        drafter = started(self.FIRST, prompt_length, scope=scope)
        drafter.begin(Context([9, 2, 3], 3), None)
        return draft(drafter, [9, 2, 3])

    def test_a_prompt_starts_from_nothing(self):
        assert self.second("prompt") == []

    def test_a_run_remembers_earlier_outputs(self):
        assert self.second("run")[:3] == [(4,), (4, 5), (4, 5, 6)]

    def test_but_no_prompts(self):
        assert self.second("run", prompt_length=4) == []

    def test_the_longer_match_drafts(self):
        drafter = started(self.FIRST, scope="run")
        tokens = [1, 2, 3, 8, 0, 3]
        drafter.begin(Context(tokens, 6), None)
        assert draft(drafter, tokens)[0] == (8,)  # "3" in both: the prompt's own
        tokens = [3, 8, 0, 2, 3]
        drafter.begin(Context(tokens, 5), None)
        assert draft(drafter, tokens)[0] == (4,)  # "2 3" against "3"

    def test_memory_has_an_end(self, monkeypatch):
        monkeypatch.setattr(suffix, "MOST_REMEMBERED", 6)
        assert self.second("run") == []


@pytest.mark.parametrize(
    "options",
    [{"nodes": 1}, {"nodes": 129}, {"least": 0.0}, {"least": 1.1}, {"doubt": -1.0}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(BenchError, match="suffix takes"):
        Suffix(TARGET, **options)
