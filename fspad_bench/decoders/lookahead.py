"""Lookahead decoding (Fu et al. 2024, arXiv 2402.02057): n-grams from Jacobi iteration.

Written from its description. The target guesses many later tokens at once, each from the guesses of
the step before; runs of such guesses are collected as n-grams and drafted when their first token
comes up.

- Window: level l in 0 .. N - 2 and column j in 0 .. W - 1 hold a guess of the token j + l places
  after the last committed one, which is itself level 0, column 0. A guess sees level 0 up to its
  column and its own column's levels below its own: one path. So the window is a tree, a chain of
  level 0 with a branch of N - 2 tokens at each of its nodes, and our attention is the published
  mask.
- Step: the logits of the last level give a new level, of guesses one place further; level 0 leaves.
  Column j leaves an n-gram, its N - 1 guesses and the new one, in the pool.
- Verification: the pool's latest n-grams that begin with the last committed token, at most
  `guesses`, join the tree. All of the tree runs in the step's one forward; its nodes are its cost.

How this one differs from what was published:

- Equal paths of window and pool are one, so a step costs fewer nodes; and a guess of the window
  that is right is accepted like any draft, where only n-grams of the pool were verified.
- After k accepted tokens the window moves on by k places. A place that has no guess gets what
  followed the token before it in the text last, or else a random token of the text, which is what
  all of the published window begins with.
- At T > 0 guesses are chosen with the noise of their positions, which the target's own choice will
  meet, so that the window converges to the sampled text; the published ones are greedy.
- The prompt's n-grams are in the pool (`prompt=false` leaves them out; an option of the release).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fspad_bench.core.protocols import Context, Drafter, Scope, Scores, Step, Target
from fspad_bench.core.tree import Tree
from fspad_bench.engine.session import LARGEST_TREE
from fspad_bench.util.errors import BenchError

CANDIDATES = 32  # tokens that a sampled guess is chosen among


class Pool:
    """N-grams by their first token: of each, the latest `size` tails that differ."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.tails: dict[int, dict[tuple[int, ...], None]] = {}

    def add(self, ngram: Sequence[int]) -> None:
        first, *tail = ngram
        known = self.tails.setdefault(first, {})
        known.pop(tuple(tail), None)
        known[tuple(tail)] = None
        if len(known) > self.size:
            del known[next(iter(known))]

    def after(self, token: int) -> list[tuple[int, ...]]:
        """Return what followed a token, the latest first."""
        return list(reversed(self.tails.get(token, {})))


class Lookahead(Drafter):
    """A window of `window` columns for n-grams of `ngram` tokens, and up to `guesses` of these."""

    def __init__(
        self,
        target: Target,
        *,
        window: int = 5,
        ngram: int = 3,
        guesses: int = 5,
        prompt: bool = True,
        scope: Scope = "prompt",
    ) -> None:
        largest = (window + guesses) * (ngram - 1)
        if not (window >= 1 and ngram >= 2 and guesses >= 1 and largest <= LARGEST_TREE):
            raise BenchError(
                "lookahead takes window >= 1, ngram >= 2, guesses >= 1 and "
                f"(window + guesses) * (ngram - 1) <= {LARGEST_TREE}, "
                f"not {window}, {ngram}, {guesses}",
                "the defaults are window=5, ngram=3, guesses=5",
            )
        self.window = window
        self.ngram = ngram
        self.prompt = prompt
        self.scope = scope
        self.pool = Pool(guesses)

    def begin(self, context: Context, scores: Scores) -> None:
        if self.scope == "prompt":
            self.pool = Pool(self.pool.size)
        if self.prompt:
            for end in range(self.ngram, context.prompt_length + 1):
                self.pool.add(context.tokens[end - self.ngram : end])
        self.dice = random.Random(context.prompt_length)
        self.position = context.position
        self.successors: dict[int, int] = {}
        self._read(context.tokens)
        none: list[int | None] = [None] * self.window
        self.levels = self._filled([none] * (self.ngram - 1), context)

    def propose(self, context: Context, budget: int) -> Tree:
        root = context.tokens[-1]
        paths = [self._path(column) for column in range(self.window)]
        paths += [list(tail) for tail in self.pool.after(root)]
        return Tree.from_paths(root, [path[:budget] for path in paths])

    def observe(self, step: Step) -> None:
        guessed = self._guess(step)
        for column, token in guessed.items():
            self.pool.add([*(level[column] for level in self.levels), token])
        context = step.context
        new = context.position - self.position
        self.position = context.position
        self._read(context.tokens[-new - 1 :])
        last = [guessed.get(column) for column in range(self.window)]
        levels: list[Sequence[int | None]] = [*self.levels[1:], last]
        missing = [None] * (new - 1)
        moved = [[*level[new - 1 :], *missing][: self.window] for level in levels]
        self.levels = self._filled(moved, context)

    def _read(self, tokens: Sequence[int]) -> None:
        self.successors.update(pairwise(tokens))

    def _filled(self, levels: list[list[int | None]], context: Context) -> list[list[int]]:
        """Return the levels with a guess at each place that has none."""
        root = context.tokens[-1]
        filled: list[list[int]] = []
        for level in [[root, *levels[0][1:]], *levels[1:]]:
            before = filled[-1][0] if filled else root
            tokens: list[int] = []
            for known in level:
                before = self._anything(before, context) if known is None else known
                tokens.append(before)
            filled.append(tokens)
        return filled

    def _anything(self, before: int, context: Context) -> int:
        """Return what followed a token last, or else a token of the text."""
        token = self.successors.get(before)
        return self.dice.choice(context.tokens) if token is None else token

    def _path(self, column: int) -> list[int]:
        """Return the tokens from the root to the last level of a column, the root's left out."""
        return [*self.levels[0][1 : column + 1], *(level[column] for level in self.levels[1:])]

    def _guess(self, step: Step) -> dict[int, int]:
        """Return the new guess of each column whose path is in the tree as a whole."""
        nodes: dict[int, int] = {}
        for column in range(self.window):
            node: int | None = 0
            for token in self._path(column):
                node = None if node is None else step.tree.children.get((node, token))
            if node is not None:
                nodes[column] = node
        if not nodes:
            return {}
        logits = step.scores.logits[list(nodes.values())]
        places = [self.position + column + self.ngram - 2 for column in nodes]
        return dict(zip(nodes, _chosen(logits, places, step.context), strict=True))


def _chosen(logits: Tensor, positions: list[int], context: Context) -> list[int]:
    """Return the token that follows from each row of `logits [n, V]`, for these positions."""
    sampler = context.sampler
    if sampler is None or sampler.greedy:
        return [int(token) for token in logits.argmax(dim=-1)]
    best = logits.topk(min(CANDIDATES, logits.shape[-1]))
    noise = torch.stack(
        [
            sampler.noise(position, row)
            for position, row in zip(positions, best.indices, strict=True)
        ]
    )
    place = (best.values + sampler.temperature * noise).argmax(dim=-1, keepdim=True)
    return [int(token) for token in best.indices.gather(-1, place)]
