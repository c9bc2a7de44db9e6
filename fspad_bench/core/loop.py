"""The one loop that every decoder runs in: propose, score, verify, commit, observe.

Vanilla decoding is the drafter that proposes nothing, so baseline and method differ in exactly the thing measured.
How a tree becomes tokens is the rule's business (`verification`), where the output is proved to be the target's,
whatever was drafted. This module knows token ids only: no text, no tasks, no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted, Chooser, Rule, match


class Scores(Protocol):
    """What a target's forward returns: `logits [N, V]` and `features [N, d]` of N rows."""

    logits: Tensor
    features: Tensor


class Target(Protocol):
    """What the loop needs of a target; `forwards` counts every full forward, a drafter's own included."""

    forwards: int

    def prefill(self, prompt: Sequence[int], room: int) -> Scores: ...
    def score(self, tree: Tree) -> Scores: ...
    def commit(self, path: Sequence[int]) -> None: ...
    def synchronize(self) -> None: ...


@dataclass
class Context:
    """All committed tokens; the last one is not in the target's cache yet.

    `sampler` is there for drafters that draw: with the target's own noise, or with dice of their own.
    """

    tokens: list[int]
    prompt_length: int
    sampler: Chooser | None = None

    @property
    def position(self) -> int:
        """The absolute position of the token that comes next."""
        return len(self.tokens)

    @property
    def new_tokens(self) -> list[int]:
        return self.tokens[self.prompt_length :]


class Step(NamedTuple):
    """All that a drafter may learn from a round, which is part of `context` by now; `seconds` are its forward's, 0 if
    nobody took them."""

    context: Context
    tree: Tree
    scores: Scores
    accepted: Accepted
    seconds: float = 0.0


class Drafter(Protocol):
    """What most methods implement. State belongs to one generation; `begin` starts it anew.

    A drafter with an attribute `verify` is verified by that rule instead of `verification.match`.
    """

    def begin(self, context: Context, scores: Scores) -> None:
        """After the prefill, whose scores these are, and the first token."""

    def propose(self, context: Context, budget: int) -> Tree:
        """A tree rooted in `context.tokens[-1]`; what is deeper than `budget` cannot be used."""

    def observe(self, step: Step) -> None:
        """After a round was committed."""


@dataclass(frozen=True)
class Limit:
    """Where a generation ends: after `max_new_tokens`, or with the first of `stop_ids`, which is kept.

    Raises ValueError for less than one token: the prefill yields one.
    """

    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: at least 1")

    def room(self, context: Context) -> int:
        """How many drafted tokens could still be used, the bonus token aside."""
        return self.max_new_tokens - len(context.new_tokens) - 1

    def reached(self, context: Context) -> bool:
        return len(context.new_tokens) >= self.max_new_tokens or context.tokens[-1] in self.stop_ids

    def cut(self, context: Context, tokens: Sequence[int]) -> list[int]:
        """Of `tokens`, those that still belong to the output."""
        tokens = list(tokens[: self.max_new_tokens - len(context.new_tokens)])
        ends = [i for i, token in enumerate(tokens) if token in self.stop_ids]
        return tokens[: ends[0] + 1] if ends else tokens


@dataclass(frozen=True)
class Generation:
    """What a decoder made of a prompt. The lists have one entry a round; `tokens` starts with the prefill's token."""

    tokens: list[int]
    prefill_seconds: float
    decode_seconds: float
    forwards: int = 0
    committed: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    draft_seconds: float = 0.0
    score_seconds: float = 0.0


def rule_of(decoder: object) -> Rule:
    """How a drafter's trees are verified: its own rule, or else by `match`."""
    return getattr(decoder, "verify", match)


@torch.inference_mode()
def generate(
    target: Target, drafter: Drafter, sampler: Chooser, prompt: Sequence[int], limit: Limit
) -> Generation:
    """Decode until `limit`. The decode clock starts when the prefill's logits exist; `begin` is inside it."""
    start = perf_counter()
    scores = target.prefill(prompt, limit.max_new_tokens)
    target.synchronize()
    ready = perf_counter()
    before = target.forwards
    context = Context(list(prompt), len(prompt), sampler)
    verify = rule_of(drafter)
    context.tokens.append(sampler.next(scores.logits[-1], context.position))
    committed = []
    drafted = []
    proposing = 0.0
    scoring = 0.0
    if not limit.reached(context):
        drafter.begin(context, scores)
    while not limit.reached(context):
        began = perf_counter()
        tree = drafter.propose(context, limit.room(context))
        proposed = perf_counter()
        scores = target.score(tree)
        scored = perf_counter()
        accepted = verify(tree, scores.logits, sampler, context.position)
        target.commit(accepted.path)
        new = [tree.tokens[node] for node in accepted.path[1:]] + [accepted.bonus]
        kept = limit.cut(context, new)
        context.tokens += kept
        drafter.observe(Step(context, tree, scores, accepted, scored - proposed))
        committed.append(len(kept))
        drafted.append(len(tree) - 1)
        proposing = proposing + proposed - began
        scoring = scoring + scored - proposed
    target.synchronize()
    return Generation(
        tokens=context.new_tokens,
        prefill_seconds=ready - start,
        decode_seconds=perf_counter() - ready,
        forwards=target.forwards - before,
        committed=committed,
        drafted=drafted,
        draft_seconds=proposing,
        score_seconds=scoring,
    )
