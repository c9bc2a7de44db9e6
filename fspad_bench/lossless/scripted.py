"""A target and drafters with prescribed distributions: hashes of the prefix, over few tokens.

- A `ScriptedTarget` keeps its cache as a plain list of tokens and computes every logit from that
  list, so a path committed in the wrong order, or one entry too many, changes everything that
  follows.
- A `ScriptedDrafter` mixes the target's logits with a script of its own: often right, often wrong.
"""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections import deque
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from fspad_bench.core.protocols import ALL, Context, Drafter, LayerPlan
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import RULES, Dice, Rule, without
from fspad_bench.engine.session import LARGEST_TREE
from fspad_bench.engine.session import Scores as Rows
from fspad_bench.util.errors import BenchError


class ScriptedTarget:
    """Logits over `vocabulary` tokens, uniform on [-3, 3), from a hash of the whole prefix.

    `sessions` are the last few that were opened, in order.
    """

    def __init__(self, vocabulary: int = 7, salt: int = 0) -> None:
        self.vocabulary = vocabulary
        self.salt = salt
        self.forwards = 0
        self.partial_forwards = 0
        self.sessions: deque[ScriptedSession] = deque(maxlen=4)

    def logits(self, prefix: Sequence[int]) -> Tensor:
        """Return the logits `[V]` after a prefix."""
        return scripted_logits(self.vocabulary, self.salt, bytes(prefix))

    def session(
        self,
        capacity: int,
        *,
        layers: LayerPlan = ALL,
        capture: Sequence[int] = (),
        share: ScriptedSession | None = None,
    ) -> ScriptedSession:
        """Open a session; some of the layers alone give the logits of another salt."""
        self.sessions.append(ScriptedSession(self, capacity, layers, len(capture) or 1, share))
        return self.sessions[-1]

    def verifier(self, rule: Rule) -> Rule:
        return rule

    def synchronize(self) -> None:
        pass


class ScriptedSession:
    """One sequence over a `ScriptedTarget`: a list of committed tokens, and a tree of pending ones.

    `paths` are those that were committed, in order.
    """

    def __init__(
        self,
        target: ScriptedTarget,
        capacity: int,
        layers: LayerPlan,
        width: int,
        share: ScriptedSession | None,
    ) -> None:
        self.target = target
        self.capacity = capacity
        self.layers = layers
        self.width = width
        self.share = share
        self.own: list[int] = []
        self.pending: list[int] = []
        self.parents: list[int] = []
        self.paths: list[list[int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.rollback()

    @property
    def tokens(self) -> list[int]:
        """The committed tokens; a sharing session has those of the session that it shares."""
        return self.own if self.share is None else self.share.tokens

    @property
    def length(self) -> int:
        return len(self.tokens)

    def prefill(self, tokens: Sequence[int]) -> Rows:
        assert self.share is None, "a sharing session reads the entries of another"
        _check_tokens(tokens, self.target.vocabulary)
        self.own = list(tokens)
        self.paths = []
        self.rollback()
        scores = self._forward([self.own[: i + 1] for i in range(self.length)])
        return Rows(scores.logits[-1:], scores.features)

    def extend(self, tokens: Sequence[int], parents: Sequence[int]) -> Rows:
        assert self.tokens, "extend before a prefill"
        assert len(tokens) == len(parents) > 0, "one parent a token"
        first = len(self.pending)
        for node, parent in enumerate(parents, first):
            assert -1 <= parent < node, "a parent precedes its child"
        _check_tokens(tokens, self.target.vocabulary)
        if first + len(tokens) > LARGEST_TREE:
            raise BenchError(
                f"a tree of {first + len(tokens)} nodes is too large", f"at most {LARGEST_TREE}"
            )
        self.pending += tokens
        self.parents += parents
        assert self.length + len(self.pending) <= self.capacity + LARGEST_TREE
        nodes = range(first, len(self.pending))
        lines = [[self.pending[i] for i in line_of(self, node)] for node in nodes]
        return self._forward([self.tokens + line for line in lines])

    def score(self, tree: Tree) -> Rows:
        assert not self.pending, "the last tree was not committed"
        return self.extend(tree.tokens, tree.parents)

    def commit(self, path: Sequence[int]) -> None:
        assert self.share is None, "a sharing session commits nothing"
        if path:
            line = line_of(self, path[-1])
            assert list(path) == line, "a path leads from the root, parent by parent"
        self.own += [self.pending[node] for node in path]
        self.paths.append(list(path))
        self.rollback()

    def rollback(self) -> None:
        self.pending = []
        self.parents = []

    def _forward(self, prefixes: Sequence[Sequence[int]]) -> Rows:
        """Count a forward, and return the logits and features after each prefix."""
        target = self.target
        salt = target.salt
        if self.layers.whole:
            target.forwards += 1
            logits = [target.logits(prefix) for prefix in prefixes]
        else:
            target.partial_forwards += 1
            logits = [scripted_logits(target.vocabulary, salt + 1, bytes(p)) for p in prefixes]
        return Rows(torch.stack(logits), fingerprints(prefixes).expand(-1, self.width))


def _check_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Raise BenchError for token ids outside the vocabulary, as a target does."""
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise BenchError(
                f"token {token} is outside the target's vocabulary of {vocabulary}",
                "the draft was made for another target",
            )


@functools.cache
def scripted_logits(vocabulary: int, salt: int, prefix: bytes) -> Tensor:
    digest = hashlib.shake_128(prefix, usedforsecurity=False)
    digest.update(b"%d" % salt)
    words = [
        int.from_bytes(word)
        for word in zip(*[iter(digest.digest(4 * vocabulary))] * 4, strict=True)
    ]
    return torch.tensor(words, dtype=torch.float64) * (6 / 2**32) - 3


def line_of(tree: Tree | ScriptedSession, node: int) -> list[int]:
    """Return the nodes from the root to `node`, by walking the parents."""
    line = [node]
    while tree.parents[line[-1]] >= 0:
        line.append(tree.parents[line[-1]])
    return line[::-1]


def fingerprints(prefixes: Sequence[Sequence[int]]) -> Tensor:
    """Features `[N, 1]` that say which prefix they belong to."""
    return _fingerprints(tuple(map(bytes, prefixes))).clone()


@functools.cache
def _fingerprints(prefixes: tuple[bytes, ...]) -> Tensor:
    return torch.tensor([[float(zlib.crc32(prefix))] for prefix in prefixes], dtype=torch.float64)


class ScriptedDrafter(Drafter):
    """A tree of fixed shape, with `widths[i]` children for every node at depth i.

    - The draft logits are the mean of the target's and of a second script's.
    - With `drawn` the children are drawn from the draft distribution and `Tree.q` is set; otherwise
      they are its most likely tokens.
    - `vocabulary` lists the tokens that can be drafted; None stands for all.
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
        self.rule = RULES[verify]
        self.drawn = drawn
        self.widths = widths
        self.vocabulary = torch.tensor(vocabulary or range(target.vocabulary))

    def propose(self, context: Context, budget: int) -> Tree:
        if budget < 1:
            return Tree.root(context.tokens[-1])
        tokens = [context.tokens[-1]]
        parents = [-1]
        level = [(0, list(context.tokens))]
        dice = self._dice(context)
        inner: list[Tensor] = []  # the draft distributions of the nodes that have children
        for width in self.widths[:budget]:
            next_level = []
            for node, prefix in level:
                q = self.distribution(prefix, context)
                inner.append(q)
                for choice in self._choices(q, width, dice):
                    token = int(self.vocabulary[choice])
                    next_level.append((len(tokens), [*prefix, token]))
                    tokens.append(token)
                    parents.append(node)
            level = next_level
        return Tree(tokens, parents, self._tree_q(inner, len(tokens)))

    def distribution(self, prefix: list[int], context: Context) -> Tensor:
        """Return `[V_draft]`, over the draft's own vocabulary and processed as the target's is."""
        assert context.sampler is not None
        logits = 0.5 * self.target.logits(prefix) + 0.5 * self.own.logits(prefix)
        return context.sampler.distribution(logits[self.vocabulary])

    def _dice(self, context: Context) -> Dice | None:
        """Return the dice for children that are drawn, None for children that are ranked."""
        if not self.drawn:
            return None
        assert context.sampler is not None
        return context.sampler.dice(context.position, "draft")

    def _choices(self, q: Tensor, width: int, dice: Dice | None) -> list[int]:
        """Return the indices of the children in draw order, fewer where `q` has less support."""
        width = min(width, int((q > 0).sum()))
        if dice is None:
            return q.sort(descending=True, stable=True).indices[:width].tolist()
        choices: list[int] = []
        for _ in range(width):
            choices.append(dice.draw(q))
            q = without(q, choices[-1])
        return choices

    def _tree_q(self, inner: list[Tensor], nodes: int) -> Tensor | None:
        """Return `Tree.q`, which only drawn children have."""
        return self._over_target_vocabulary(inner, nodes) if self.drawn else None

    def _over_target_vocabulary(self, inner: list[Tensor], nodes: int) -> Tensor:
        """Return `[N, V]`: the distributions of the inner nodes, which come first, and zeros."""
        q = torch.zeros(nodes, self.target.vocabulary, dtype=torch.float64)
        q[: len(inner), self.vocabulary] = torch.stack(inner)
        return q
