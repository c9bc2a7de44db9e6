"""Rules that turn a tree and the target's logits into tokens. Every one of them is exact; they
differ in the proof.

- `match` samples the target at each node it reaches and goes on where a child agrees: the draft
  never influences the answer, so the tokens are vanilla's own.
- `rejection` and `traversal` accept a drawn child with a probability that depends on both
  distributions and correct what follows a refusal: the same distribution, other tokens. They need
  to know how the children were drawn (`Tree.q`); children that were not drawn, such as a top-k,
  count as certain.
- At temperature 0 all rules agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import update_wrapper
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fspad_bench.core.processors import NodeLogits, Processing
from fspad_bench.core.tree import Tree
from fspad_bench.util.errors import BenchError, near


class Dice(Protocol):
    """Randomness that is independent of the noise of `next`."""

    def draw(self, p: Tensor) -> int: ...
    def accept(self, probability: float) -> bool: ...


class Chooser(Processing, Protocol):
    """The seam through which a rule samples.

    `sampling.Sampler`, or an oracle that enumerates every outcome.
    """

    @property
    def temperature(self) -> float: ...
    @property
    def greedy(self) -> bool: ...
    def next(self, logits: Tensor, position: int) -> int: ...
    def noise(self, position: int, tokens: Tensor) -> Tensor: ...
    def distribution(self, logits: Tensor) -> Tensor: ...
    def dice(self, position: int, purpose: str) -> Dice: ...


class Accepted(NamedTuple):
    """The accepted nodes, root first, and the target's token after the last of them."""

    path: list[int]
    bonus: int


class Rule:
    """A rule of verification: `rule(tree, logits [N, V], sampler, position) -> Accepted`.

    `position` is that of the root's children. An object rather than a plain function, so that it
    can be a class attribute of a decoder: `rule = rejection`.
    """

    by_node = False
    """Whether it reads no more of the logits than `logits[node]` of the nodes that it reaches."""

    def __init__(self, verify: Callable[[Tree, Any, Chooser, int], Accepted]) -> None:
        self.verify = verify
        self.name: str = getattr(verify, "__name__", type(verify).__name__)
        update_wrapper(self, verify)

    def __call__(
        self, tree: Tree, logits: Tensor | NodeLogits, sampler: Chooser, position: int
    ) -> Accepted:
        if isinstance(logits, NodeLogits) and not self.by_node:
            logits = logits.whole()
        return self.verify(tree, logits, sampler, position)

    def __repr__(self) -> str:
        return f"Rule({self.name})"


class NodeRule(Rule):
    """A rule that reads the logits node by node, so that processors run for those nodes alone."""

    by_node = True


@NodeRule
def match(tree: Tree, logits: Tensor | NodeLogits, sampler: Chooser, position: int) -> Accepted:
    """Walk from the root, and on where a child agrees with the target's token at a node."""
    path = [0]
    while True:
        token = sampler.next(logits[path[-1]], position + len(path) - 1)
        child = tree.children.get((path[-1], token))
        if child is None:
            return Accepted(path, token)
        path.append(child)


@NodeRule
def rejection(tree: Tree, logits: Tensor | NodeLogits, sampler: Chooser, position: int) -> Accepted:
    """Recursive rejection sampling (Jeon et al. 2024, arXiv 2402.14160), children drawn without
    replacement.

    At a node x_1, x_2, ... are tried in the order they were drawn: x_i is taken with probability
    p(x_i) / q_i(x_i), or else p becomes norm((p - q_i)+). After the last refusal the bonus token is
    drawn from what is left of p.
    """
    dice = sampler.dice(position, "verify")
    path = [0]
    while True:
        p = sampler.distribution(logits[path[-1]])
        accepted = None
        for child, q in drawn(tree, path[-1], p):
            token = tree.tokens[child]
            if dice.accept(float(p[token] / q[token])):
                accepted = child
                break
            p = normalised((p - q).clamp(min=0), p)
        if accepted is None:
            return Accepted(path, dice.draw(p))
        path.append(accepted)


@NodeRule
def traversal(tree: Tree, logits: Tensor | NodeLogits, sampler: Chooser, position: int) -> Accepted:
    """Traversal verification (Weng et al. 2025, arXiv 2505.12398): from the leaves up, a whole path
    at a time.

    A path is reached with probability a = min(1, a_parent p(x) / q(x)) and kept with that
    probability once its last node's children were all refused; a refusal leaves p as norm((a p -
    q)+) =: r / S and a as S / (S + 1 - a). On a chain this is block verification (Sun et al. 2024),
    which on average accepts at least as much as `rejection`.
    """
    dice = sampler.dice(position, "verify")
    unread = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device)

    def visit(path: list[int], a: float) -> Accepted | None:
        # behind a token of probability 0 there may be nothing that a processor could say
        p = sampler.distribution(logits[path[-1]]) if a else unread
        for child, q in drawn(tree, path[-1], p):
            token = tree.tokens[child]
            accepted = visit([*path, child], min(1.0, a * float(p[token] / q[token])))
            if accepted:
                return accepted
            rest = (a * p - q).clamp(min=0)
            mass = float(rest.sum())
            lost = 1 - a
            p = normalised(rest, p)
            a = mass / (mass + lost) if mass + lost else 1.0
        return Accepted(path, dice.draw(p)) if dice.accept(a) else None

    accepted = visit([0], 1.0)
    assert accepted is not None  # a = 1 at the root is never refused
    return accepted


def drawn(tree: Tree, node: int, p: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the children of a node in draw order, each with the distribution `[V]` of its own draw.

    That is the node's `q` without the children before it. Raises ValueError where a child could not
    have been drawn from it: the drafter's `q` is wrong.
    """
    q = None if tree.q is None else tree.q[node]
    for child in tree.offspring[node]:
        token = tree.tokens[child]
        if q is None:
            yield child, torch.zeros_like(p).index_fill_(0, torch.tensor(token, device=p.device), 1)
        else:
            if not q[token] > 0:
                raise ValueError(
                    f"token {token} was drawn from a distribution that gives it {float(q[token])}"
                )
            yield child, q
            q = without(q, token)


def without(q: Tensor, token: int) -> Tensor:
    """Return the distribution `[V]` of the next draw once `token` is taken.

    All zeros when nothing is left.
    """
    rest = q.clone()
    rest[token] = 0
    return rest / rest.sum() if rest.any() else rest


def normalised(weights: Tensor, fallback: Tensor) -> Tensor:
    """Return `weights` as a distribution, or `fallback` where rounding left none (only after an
    impossible refusal).
    """
    total = weights.sum()
    return weights / total if total > 0 else fallback


RULES: dict[str, Rule] = {rule.name: rule for rule in (match, rejection, traversal)}


def rule_named(name: str) -> Rule:
    """Return a rule by its name. Raises BenchError with the near match."""
    if name not in RULES:
        raise BenchError(f"unknown verification '{name}'", near(name, RULES))
    return RULES[name]
