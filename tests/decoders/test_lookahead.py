"""Lookahead's tree is its window and its pool; the window moves as Jacobi iteration says."""

from __future__ import annotations

import pytest

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Context, Limit, Step
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.decoders.lookahead import Lookahead, Pool
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.util.errors import BenchError

TARGET = ScriptedTarget(5)


def started(tokens, prompt_length=None, **options):
    drafter = Lookahead(TARGET, **options)
    length = len(tokens) - 1 if prompt_length is None else prompt_length
    context = Context(list(tokens), length)
    drafter.begin(context, None)
    return drafter, context


def paths(tree):
    paths = [()]
    for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths


def test_the_tree_is_a_chain_with_a_branch_at_each_of_its_nodes():
    drafter, context = started([8, 9], window=3, ngram=4, prompt=False)
    drafter.levels = [[9, 1, 2], [10, 11, 12], [20, 21, 22]]
    expected = [(), (1,), (1, 2), (10,), (10, 20), (1, 11), (1, 11, 21), (1, 2, 12), (1, 2, 12, 22)]
    assert sorted(paths(drafter.propose(context, 9))) == sorted(expected)
    assert max(map(len, paths(drafter.propose(context, 2)))) == 2


def test_ngrams_of_the_pool_join_it_and_equal_paths_are_one():
    drafter, context = started([8, 9], window=2, ngram=3, prompt=False)
    drafter.levels = [[9, 1], [5, 6]]
    for tail in ((1, 2), (1, 6), (7, 7)):
        drafter.pool.add((9, *tail))
    expected = [(), (1,), (1, 2), (1, 6), (5,), (7,), (7, 7)]
    assert sorted(paths(drafter.propose(context, 9))) == expected


class Followed(Lookahead):
    """Checks the window at each step against a transcription by absolute positions.

    `guesses[level][position]` is the guess of the token there that is a level's.
    """

    def begin(self, context: Context, scores: object) -> None:
        super().begin(context, scores)
        self.guesses = [{} for _ in self.levels]
        self.checked = 0

    def propose(self, context: Context, budget: int) -> Tree:
        root = context.position - 1
        for level, row in enumerate(self.levels):
            for column, token in enumerate(row):
                known = self.guesses[level].get(root + column + level)
                if (level or column) and known is not None:
                    assert token == known
                    self.checked += 1
                self.guesses[level][root + column + level] = token
        self.prefix = list(context.tokens)
        self.budget = budget
        return super().propose(context, budget)

    def observe(self, step: Step) -> None:
        root = len(self.prefix) - 1
        new = {}
        for column in range(self.window):
            chain = [self.guesses[0][root + j] for j in range(1, column + 1)]
            branch = [self.guesses[up][root + column + up] for up in range(1, self.ngram - 1)]
            if len(chain + branch) <= self.budget:
                text = [*self.prefix, *chain, *branch]
                token = step.context.sampler.next(TARGET.logits(text), len(text))
                new[root + column + self.ngram - 1] = token
        self.guesses = [*self.guesses[1:], new]
        super().observe(step)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(("window", "ngram"), [(4, 3), (3, 4), (5, 2), (1, 3)])
def test_the_window_moves_as_the_transcription_does(window, ngram, temperature):
    drafter = Followed(TARGET, window=window, ngram=ngram)
    generate(TARGET, drafter, Sampler(temperature, seed=2), [1, 2, 3, 1], Limit(50))
    assert drafter.checked > 20 * (window > 1)


class NowAndThen(Followed):
    """Drafts at every other step; the others have a tree of one node."""

    def propose(self, context: Context, budget: int) -> Tree:
        tree = super().propose(context, budget)
        if context.position % 2:
            self.budget = 0
            return Tree.root(context.tokens[-1])
        return tree


def test_a_step_without_its_tree_moves_the_window_too():
    drafter = NowAndThen(TARGET, window=4, ngram=3)
    generate(TARGET, drafter, Sampler(seed=2), [1, 2, 3, 1], Limit(50))
    assert drafter.checked > 100


def test_each_column_leaves_an_ngram_in_the_pool():
    drafter, context = started([1, 2], window=2, ngram=3, prompt=False)
    context.sampler = Sampler()
    drafter.levels = [[2, 3], [4, 0]]
    tree = drafter.propose(context, 9)
    before = list(context.tokens)
    with TARGET.session(9) as session:
        session.prefill(before[:-1])
        scores = session.score(tree)
    first = int(TARGET.logits([*before, 4]).argmax())
    second = int(TARGET.logits([*before, 3, 0]).argmax())
    context.tokens.append(0)
    drafter.observe(Step(context, tree, scores, None))
    assert drafter.pool.tails == {2: {(4, first): None}, 3: {(0, second): None}}
    assert drafter.levels[1][0] == first
    assert drafter.levels[0] == [0, 0]


def test_the_pool_keeps_the_latest_tails_that_differ():
    pool = Pool(2)
    for ngram in ((1, 2, 3), (1, 4, 5), (1, 2, 3), (1, 6, 7), (2, 2, 2)):
        pool.add(ngram)
    assert pool.after(1) == [(6, 7), (2, 3)]
    assert pool.after(9) == []


def test_the_prompts_ngrams_are_in_the_pool():
    tokens = [1, 2, 3, 4, 1]
    drafter, _ = started(tokens, 5)
    assert drafter.pool.after(1) == [(2, 3)]
    drafter, _ = started(tokens, 5, prompt=False)
    assert drafter.pool.tails == {}


@pytest.mark.parametrize(("scope", "expected"), [("prompt", []), ("run", [(2, 3)])])
def test_the_pool_lasts_as_long_as_the_scope(scope, expected):
    drafter, _ = started([1, 2, 3, 4, 1], scope=scope)
    drafter.begin(Context([5, 6, 1], 2), None)
    assert drafter.pool.after(1) == expected


def test_a_place_without_a_guess_gets_what_followed_in_the_text():
    drafter, _ = started([1, 2, 3, 1, 2, 3, 1], window=3, ngram=3)
    assert drafter.levels == [[1, 2, 3], [2, 3, 1]]


@pytest.mark.parametrize(
    "options",
    [
        {"window": 0},
        {"ngram": 1},
        {"guesses": 0},
        {"window": 60, "guesses": 5},
        {"window": 15, "ngram": 6, "guesses": 15},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(BenchError, match="lookahead takes"):
        Lookahead(TARGET, **options)


def test_the_published_sizes_fit():
    Lookahead(TARGET, window=15, ngram=5, guesses=15)
