"""Production code with one mistake each, for checks to refuse: what cannot fail proves nothing.

- A mistake in a rule of verification is a `Rule` written out in full, given to the drafter under
  test. Any other mistake is a function that stands in for one attribute of a class or module while
  it is applied (`Patch`).
- Each mutation lists the checks that must refuse it (`caught`), those that theory calls blind to it
  (`blind`), and which of the blind ones never call the spoiled code (`unreached`). `trials` holds
  every check to these lists.
- Calls of a wrong function are counted, so a mutation that is no longer in force cannot go
  unnoticed.
- Sources: published harnesses and papers that ship, or warn of, these very mistakes (EAGLE-2 and
  Spec-Bench: the raw bonus token; Medusa: typical acceptance, one nucleus for a row).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from fspad_bench.core import sampling
from fspad_bench.core.protocols import Context, Drafter, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Accepted, Chooser, Dice, Rule, normalised
from fspad_bench.engine.cache import KVCache
from fspad_bench.lossless.scripted import ScriptedDrafter

Verify = Callable[[Tree, Tensor, Chooser, int], Accepted]


class Patch(NamedTuple):
    """A function of a class or module, and the wrong function that stands in for it."""

    owner: object
    right: Callable[..., Any]
    wrong: Callable[..., Any]


class Applied:
    """A mutation in force; `calls` counts how often its wrong function ran."""

    def __init__(self, mutation: Mutation) -> None:
        self.mutation = mutation
        self.calls = 0

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, counting its calls."""

        @functools.wraps(function)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            return function(*arguments, **options)

        return wrapper

    def spoil(self, drafter: Drafter) -> None:
        """Give `drafter` the wrong rule where the mutation is one."""
        if not isinstance(self.mutation.fault, Patch):
            drafter.rule = Rule(self.counted(self.mutation.fault))


@dataclass(frozen=True)
class Mutation:
    """A mistake, and the checks that must or cannot see it.

    `rule` and `draft` name the scripted drafter that it concerns. `raises` is set where the
    production code itself refuses the result of the mistake: its checks then meet that exception.
    `compiled`: it concerns the compiled step alone.
    """

    name: str
    fault: Verify | Patch
    caught: tuple[str, ...]
    blind: tuple[str, ...]
    unreached: tuple[str, ...] = ()
    rule: str = "match"
    draft: str = "ranked"
    raises: type[Exception] | None = None
    compiled: bool = False

    @contextmanager
    def applied(self) -> Iterator[Applied]:
        """Put the mistake in force until the block ends."""
        applied = Applied(self)
        if not isinstance(self.fault, Patch):
            yield applied
            return
        owner, right, wrong = self.fault
        with patch.object(owner, right.__name__, applied.counted(wrong)):
            yield applied


def bonus_without_temperature(
    tree: Tree, logits: Tensor, sampler: Chooser, position: int
) -> Accepted:
    path = [0]
    while True:
        node = path[-1]
        row = logits[node]
        if sampler.temperature and not tree.offspring[node]:
            row = row * sampler.temperature  # wrong: a leaf's token is drawn at temperature 1
        token = sampler.next(row, position + len(path) - 1)
        child = tree.children.get((node, token))
        if child is None:
            return Accepted(path, token)
        path.append(child)


def typical_acceptance(tree: Tree, logits: Tensor, sampler: Chooser, position: int) -> Accepted:
    path = [0]
    while True:
        node = path[-1]
        token = sampler.next(logits[node], position + len(path) - 1)
        p = sampler.distribution(logits[node])
        likely = [child for child in tree.offspring[node] if p[tree.tokens[child]] > 0.09]
        # wrong: a child is accepted for being likely, whatever the target chose
        child = likely[0] if likely else tree.children.get((node, token))
        if child is None:
            return Accepted(path, token)
        path.append(child)


def refused_choice_redrawn(tree: Tree, logits: Tensor, sampler: Chooser, position: int) -> Accepted:
    path = [0]
    while True:
        node = path[-1]
        token = sampler.next(logits[node], position + len(path) - 1)
        child = tree.children.get((node, token))
        if child is None:
            # wrong: the choice that refused the children is thrown away and made anew
            return Accepted(path, sampler.next(logits[node], position + len(path) + 2**20))
        path.append(child)


def position_too_far(tree: Tree, logits: Tensor, sampler: Chooser, position: int) -> Accepted:
    path = [0]
    while True:
        node = path[-1]
        token = sampler.next(logits[node], position + len(path))  # wrong: one position too far
        child = tree.children.get((node, token))
        if child is None:
            return Accepted(path, token)
        path.append(child)


def rejection_with_fixed_q(tree: Tree, logits: Tensor, sampler: Chooser, position: int) -> Accepted:
    dice = sampler.dice(position, "verify")
    path = [0]
    while True:
        node = path[-1]
        p = sampler.distribution(logits[node])
        q = p if tree.q is None else tree.q[node]  # a tree of one node needs none
        accepted = None
        for child in tree.offspring[node]:  # wrong: q keeps the siblings that were drawn before
            token = tree.tokens[child]
            if dice.accept(float(p[token] / q[token])):
                accepted = child
                break
            p = normalised((p - q).clamp(min=0), p)
        if accepted is None:
            return Accepted(path, dice.draw(p))
        path.append(accepted)


def q_of_ranked_children(self: ScriptedDrafter, inner: list[Tensor], nodes: int) -> Tensor:
    # wrong: children that were ranked, not drawn, claim the distribution all the same
    return self._over_target_vocabulary(inner, nodes)


RIGHT_CHOICES = ScriptedDrafter._choices


def unlikely_dropped(self: ScriptedDrafter, q: Tensor, width: int, dice: Dice | None) -> list[int]:
    choices = RIGHT_CHOICES(self, q, width, dice)
    return [choice for choice in choices if q[choice] > 0.3]  # wrong: no longer draws from q


def drawn_with_replacement(
    self: ScriptedDrafter, q: Tensor, width: int, dice: Dice | None
) -> list[int]:
    assert dice is not None
    width = min(width, int((q > 0).sum()))
    return [dice.draw(q) for _ in range(width)]  # wrong: q keeps what was drawn


def vocabulary_not_mapped(self: ScriptedDrafter, inner: list[Tensor], nodes: int) -> Tensor:
    q = torch.zeros(nodes, self.target.vocabulary, dtype=torch.float64)
    q[: len(inner), : len(self.vocabulary)] = torch.stack(inner)  # wrong: draft ids, not token ids
    return q


def keep_without_compaction(self: KVCache, start: int, path: Sequence[int]) -> None:
    pass  # wrong: the accepted entries stay where they are


def cut_one_too_late(self: Limit, context: Context, tokens: Sequence[int]) -> list[int]:
    tokens = list(tokens[: self.max_new_tokens - len(context.new_tokens)])
    ends = [i for i, token in enumerate(tokens) if token in self.stop_ids]
    return tokens[: ends[0] + 2] if ends else tokens  # wrong: keeps the token after the stop


def shared_dice(self: Sampler, position: int, purpose: str) -> sampling.Dice:
    # wrong: drafting and verification draw the same numbers
    return sampling.Dice(self.streamed(f"{self.stream}\nshared").key, position)


def unbounded_gumbel(h: Tensor) -> Tensor:
    high = ((h >> 16) & 0xFFFF).to(torch.float32).mul_(2.0**-16)
    low = (h & 0xFFFF).to(torch.float32).add_(0.5).mul_(2.0**-32)
    w = high.add_(low)  # wrong: rounds to 1 for the largest hashes
    return torch.log1p(w.neg_()).neg_().log_().neg_()


MUTATIONS = [
    Mutation(
        "bonus token without the temperature",
        bonus_without_temperature,
        caught=("exact distribution T=0.6", "identity T=0.5", "G-test", "PIT"),
        blind=(
            "exact distribution T=1",
            "identity T=1",
            "exact distribution greedy",
            "identity greedy",
        ),
    ),
    Mutation(
        "soft-max q for top-k children",
        Patch(ScriptedDrafter, ScriptedDrafter._tree_q, q_of_ranked_children),
        caught=("exact distribution T=0.6", "exact distribution T=1", "G-test"),
        blind=("exact distribution greedy",),
        rule="rejection",
    ),
    Mutation(
        "typical acceptance",
        typical_acceptance,
        caught=("exact distribution T=0.6", "exact distribution T=1", "identity T=1", "G-test"),
        blind=("exact distribution greedy", "identity greedy"),
    ),
    Mutation(
        "a nucleus a row: the refused answer is thrown away",
        refused_choice_redrawn,
        caught=("exact distribution T=0.6", "exact distribution T=1", "identity T=1", "G-test"),
        blind=("exact distribution greedy", "identity greedy"),
    ),
    Mutation(
        "drawn children dropped if unlikely",
        Patch(ScriptedDrafter, ScriptedDrafter._choices, unlikely_dropped),
        caught=("exact distribution T=0.6", "exact distribution T=1", "G-test"),
        blind=("exact distribution greedy",),
        rule="rejection",
        draft="drawn",
    ),
    Mutation(
        "draws with replacement",
        Patch(ScriptedDrafter, ScriptedDrafter._choices, drawn_with_replacement),
        caught=("exact distribution T=0.6", "exact distribution T=1", "G-test"),
        blind=("exact distribution greedy",),
        rule="rejection",
        draft="drawn",
        raises=ValueError,  # two siblings of a tree carry different tokens
    ),
    Mutation(
        "one fixed q, draws without replacement",
        rejection_with_fixed_q,
        caught=("exact distribution T=0.6", "exact distribution T=1"),
        blind=("exact distribution greedy",),
        rule="rejection",
        draft="drawn",
    ),
    Mutation(
        "a position too far",
        position_too_far,
        caught=("identity T=0.5", "identity T=1"),
        blind=("exact distribution T=0.6", "exact distribution T=1", "identity greedy", "PIT"),
    ),
    Mutation(
        "a stale KV row",
        Patch(KVCache, KVCache.keep, keep_without_compaction),
        caught=("cache", "identity greedy", "identity T=1"),
        blind=("exact distribution T=0.6", "G-test"),
        unreached=("exact distribution T=0.6", "G-test"),  # a scripted target has no such cache
    ),
    Mutation(
        "one token past the stop",
        Patch(Limit, Limit.cut, cut_one_too_late),
        caught=("identity with stops",),
        blind=("identity greedy", "identity T=1", "exact distribution T=1", "cache"),
    ),
    Mutation(
        "draft vocabulary not mapped",
        Patch(ScriptedDrafter, ScriptedDrafter._over_target_vocabulary, vocabulary_not_mapped),
        caught=("exact distribution T=0.6", "exact distribution T=1"),
        blind=("identity T=1",),
        unreached=("identity T=1",),  # a coupled tree has no q
        rule="rejection",
        draft="drawn, own vocabulary",
        raises=ValueError,  # a child that its distribution could not have drawn
    ),
    Mutation(
        "draft and verification share their dice",
        Patch(Sampler, Sampler.dice, shared_dice),
        caught=("G-test",),
        blind=("exact distribution T=1", "identity T=1"),
        unreached=("exact distribution T=1", "identity T=1"),  # an oracle's dice; no dice at all
        rule="rejection",
        draft="drawn",
    ),
    Mutation(
        "noise that can be infinite",
        Patch(sampling, sampling.gumbel, unbounded_gumbel),
        caught=("noise is finite",),
        blind=("identity T=1", "exact distribution T=1"),
        unreached=("exact distribution T=1",),  # an oracle has no noise
    ),
]
