"""A target and drafters whose laws are written down: hashes of the whole prefix, over a few tokens.

A `ScriptedTarget` keeps its cache as a plain list of tokens and computes every logit from what that list holds, so a
path committed in the wrong order, or one row too many, changes all that follows. The drafter speaks from a script of
its own that is half the target's: often right, often wrong.
"""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from fspad_bench.core.loop import Context, Scores, Step
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import RULES, without
from fspad_bench.engine.target import Scores as Rows


class ScriptedTarget:
    """Logits over `vocabulary` tokens, uniform on [-3, 3), from a hash of the whole prefix."""

    def __init__(self, vocabulary: int = 7, salt: int = 0) -> None:
        self.vocabulary = vocabulary
        self.salt = salt
        self.forwards = 0
        self.rows = []
        self.tree = None
        self.paths: list[list[int]] = []

    def logits(self, prefix: Sequence[int]) -> Tensor:
        return scripted_logits(self.vocabulary, self.salt, bytes(prefix))

    def prefill(self, prompt: Sequence[int], room: int) -> Rows:
        self.forwards += 1
        self.rows = list(prompt)
        self.tree = None
        self.paths = []
        self.room = len(prompt) + room
        return Rows(
            self.logits(prompt)[None], fingerprints([prompt[: i + 1] for i in range(len(prompt))])
        )

    def score(self, tree: Tree) -> Rows:
        assert self.tree is None, "the last tree was not committed"
        self.forwards += 1
        self.tree = tree
        prefixes = [
            self.rows + [tree.tokens[i] for i in line_of(tree, node)] for node in range(len(tree))
        ]
        return Rows(
            torch.stack([self.logits(prefix) for prefix in prefixes]), fingerprints(prefixes)
        )

    def commit(self, path: Sequence[int]) -> None:
        assert self.tree is not None, "nothing to commit"
        assert list(path) == line_of(self.tree, path[-1]), (
            "a path leads from the root, parent by parent"
        )
        self.rows += [self.tree.tokens[node] for node in path]
        self.paths.append(list(path))
        self.tree = None
        assert len(self.rows) < self.room + 128

    def synchronize(self) -> None:
        pass


@functools.cache
def scripted_logits(vocabulary: int, salt: int, prefix: bytes) -> Tensor:
    digest = hashlib.shake_128(prefix, usedforsecurity=False)
    digest.update(b"%d" % salt)
    words = [
        int.from_bytes(word)
        for word in zip(*[iter(digest.digest(4 * vocabulary))] * 4, strict=True)
    ]
    return torch.tensor(words, dtype=torch.float64) * (6 / 2**32) - 3


def line_of(tree: Tree, node: int) -> list[int]:
    """The nodes from the root to `node`, by walking the parents."""
    line = [node]
    while tree.parents[line[-1]] >= 0:
        line.append(tree.parents[line[-1]])
    return line[::-1]


def fingerprints(prefixes: Sequence[Sequence[int]]) -> Tensor:
    """Features `[N, 1]` that say which prefix they belong to."""
    return torch.tensor(
        [[float(zlib.crc32(bytes(prefix)))] for prefix in prefixes], dtype=torch.float64
    )


class ScriptedDrafter:
    """A tree of fixed shape, `widths[i]` children a node at depth i, from logits between the target's and its own.

    `drawn` children come from that law, with `Tree.q`; else they are its best. `vocabulary` are the tokens it can say.
    """

    def __init__(
        self,
        target: ScriptedTarget,
        *,
        verify: str = "match",
        drawn: bool = False,
        widths: Sequence[int] = (2, 1),
        vocabulary: Sequence[int] | None = None,
    ) -> None:
        self.target = target
        self.own = ScriptedTarget(target.vocabulary, target.salt + 1)
        self.verify = RULES[verify]
        self.drawn = drawn
        self.widths = widths
        self.vocabulary = torch.tensor(vocabulary or range(target.vocabulary))

    def begin(self, context: Context, scores: Scores) -> None:
        pass

    def propose(self, context: Context, budget: int) -> Tree:
        if budget < 1:
            return Tree.root(context.tokens[-1])
        tokens = [context.tokens[-1]]
        parents = [-1]
        level = [(0, list(context.tokens))]
        dice = context.sampler.dice(context.position, "draft") if self.drawn else None
        laws: list[Tensor] = []
        for width in self.widths[:budget]:
            grown = []
            for node, prefix in level:
                q = self.law(prefix, context)
                laws.append(q)
                for choice in self._choices(q, width, dice):
                    token = int(self.vocabulary[choice])
                    grown.append((len(tokens), [*prefix, token]))
                    tokens.append(token)
                    parents.append(node)
            level = grown
        return Tree(
            tokens, parents, self._over_the_target(laws, len(tokens)) if self.drawn else None
        )

    def observe(self, step: Step) -> None:
        pass

    def law(self, prefix: list[int], context: Context) -> Tensor:
        """Over the draft's own vocabulary, processed as the target's is, `[V_draft]`."""
        logits = 0.5 * self.target.logits(prefix) + 0.5 * self.own.logits(prefix)
        return context.sampler.law(logits[self.vocabulary])

    def _choices(self, law: Tensor, width: int, dice: object) -> list[int]:
        """Indices of the children, in the order in which they are chosen; fewer where the law has no more to give."""
        width = min(width, int((law > 0).sum()))
        if dice is None:
            return law.sort(descending=True, stable=True).indices[:width].tolist()
        found = []
        q = law
        for _ in range(width):
            found.append(dice.draw(q))
            q = without(q, found[-1])
        return found

    def _over_the_target(self, laws: list[Tensor], nodes: int) -> Tensor:
        """`laws` of the first nodes over the target's vocabulary; the leaves have none. `[N, V]`"""
        q = torch.zeros(nodes, self.target.vocabulary, dtype=torch.float64)
        q[: len(laws), self.vocabulary] = torch.stack(laws)
        return q
