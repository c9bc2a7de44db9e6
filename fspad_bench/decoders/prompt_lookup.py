"""Prompt lookup decoding (Saxena 2023): if the last n tokens occurred before, propose what followed
them.

The longest n-gram that has an earlier occurrence decides, and the latest such occurrence; without
one, no draft. Where what followed reaches the end of the text the copy goes on into itself, so a
loop is drafted to its full length.
"""

from __future__ import annotations

from typing import Any

from fspad_bench.core.protocols import Context, Scores, Step, Target
from fspad_bench.core.tree import Tree
from fspad_bench.drafts.sized import SizedDrafter
from fspad_bench.engine.session import LARGEST_TREE
from fspad_bench.util.errors import BenchError

FIXED_LENGTH = 8
MOST_LENGTH = 16
LONGEST_NGRAM = 64  # every step looks up and indexes each size


class PromptLookup(SizedDrafter):
    """`length` tokens after the latest match of the last `ngram`, or fewer, down to `shortest`.

    `tree`: see `SizedDrafter`; empty, it is fixed where `length` is given.
    """

    def __init__(
        self,
        target: Target,
        *,
        ngram: int = 3,
        shortest: int = 2,
        length: int | None = None,
        tree: str = "",
    ) -> None:
        super().__init__(target, tree=tree, size=length)
        length = self.size_of(length, auto=MOST_LENGTH, fixed=FIXED_LENGTH)
        if not (1 <= shortest <= ngram <= LONGEST_NGRAM and 1 <= length < LARGEST_TREE):
            raise BenchError(
                f"prompt_lookup takes 1 <= shortest <= ngram <= {LONGEST_NGRAM} and "
                f"1 <= length < {LARGEST_TREE}, not {shortest}, {ngram}, {length}",
                f"the defaults are shortest=2, ngram=3, length={FIXED_LENGTH}",
            )
        self.sizes = range(ngram, shortest - 1, -1)
        self.length = length

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            "ngram": self.sizes[0],
            "shortest": self.sizes[-1],
            "length": self.length,
        }

    def begin(self, context: Context, scores: Scores) -> None:
        super().begin(context, scores)
        self.ends: dict[tuple[int, ...], int] = {}  # n-gram -> end of its latest known occurrence
        self.indexed = 0
        self._index(context.tokens)

    def candidates(self, context: Context, budget: int) -> Tree:
        tokens = context.tokens
        for size in self.sizes:
            end = self.ends.get(tuple(tokens[-size:]))
            if end is not None:
                draft = self._copy(tokens, end, min(self.length, budget))
                return Tree.chain(tokens[-1], draft)
        return Tree.root(tokens[-1])

    def observe(self, step: Step) -> None:
        super().observe(step)
        self._index(step.context.tokens)

    def _copy(self, tokens: list[int], start: int, length: int) -> list[int]:
        """Return `length` tokens from `start` on.

        Past the last token the text repeats with the match's period.
        """
        period = len(tokens) - start
        return [tokens[start + i % period] for i in range(length)]

    def _index(self, tokens: list[int]) -> None:
        """Index every n-gram that something follows."""
        for end in range(max(1, self.indexed), len(tokens)):
            for size in self.sizes:
                if size <= end:
                    self.ends[tuple(tokens[end - size : end])] = end
        self.indexed = len(tokens)
