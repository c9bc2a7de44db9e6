"""Rules that turn a tree and the target's scores into tokens. Every one of them is exact; they differ in the proof.

`match` asks the target at each node it reaches and goes on where a child agrees: the draft never influences the
answer, so the tokens are vanilla's own. `rejection` and `traversal` accept a drawn child with a probability made of
both laws and correct what follows a refusal: the same law, other tokens. They need to know how the children were
drawn (`Tree.q`); children that nobody drew, such as a top-k, count as certain. At temperature 0 all rules agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fspad_bench.core.sampling import Sampler
from fspad_bench.core.tree import Tree
from fspad_bench.engine import gpu as kernels
from fspad_bench.engine.gpu import Kernels
from fspad_bench.engine.gpu.tensors import Law, Nodes
from fspad_bench.errors import BenchError, near


class Dice(Protocol):
    """Randomness that owes nothing to the noise of `next`."""

    def draw(self, p: Tensor) -> int: ...
    def accept(self, probability: float) -> bool: ...


class Chooser(Protocol):
    """The seam through which a rule asks; `sampling.Sampler` in production, an oracle where laws are enumerated."""

    temperature: float

    def next(self, logits: Tensor, position: int) -> int: ...
    def noise(self, position: int, tokens: Tensor) -> Tensor: ...
    def law(self, logits: Tensor) -> Tensor: ...
    def dice(self, position: int, purpose: str) -> Dice: ...


class Accepted(NamedTuple):
    """The accepted nodes, root first, and the token the target says after the last of them."""

    path: list[int]
    bonus: int


Rule = Callable[[Tree, Tensor, Chooser, int], Accepted]


def match(tree: Tree, logits: Tensor, sampler: Chooser, position: int) -> Accepted:
    """Follow the target down the tree. logits `[N, V]`; `position` is the one behind the root's.

    Where kernels run every node is asked at once, else those that the walk reaches: with the same answer.
    """
    found = kernels.chosen(logits.device)
    if found and isinstance(sampler, Sampler):
        return _ask_all(found, tree, logits, sampler, position)
    return ask_along(tree, logits, sampler, position)


def ask_along(tree: Tree, logits: Tensor, sampler: Chooser, position: int) -> Accepted:
    """Walk from the root, and on where a child agrees with what the target says at a node."""
    path = [0]
    while True:
        token = sampler.next(logits[path[-1]], position + len(path) - 1)
        child = tree.children.get((path[-1], token))
        if child is None:
            return Accepted(path, token)
        path.append(child)


def _ask_all(
    found: Kernels, tree: Tree, logits: Tensor, sampler: Sampler, position: int
) -> Accepted:
    nodes = Nodes.of(tree, logits.device)
    at = torch.tensor([position], dtype=torch.int32, device=logits.device)
    walk = found.walk(nodes, found.choose(logits, nodes.depths, at, _law(sampler, logits.device)))
    count, bonus, *path = torch.cat(
        [walk.count.view(1), walk.bonus.view(1).int(), walk.path]
    ).tolist()
    return Accepted(path[:count], bonus)


@lru_cache(maxsize=4)
def _law(sampler: Sampler, device: torch.device) -> Law:
    """A generation's, copied to the device once."""
    return Law.of(sampler, device)


def rejection(tree: Tree, logits: Tensor, sampler: Chooser, position: int) -> Accepted:
    """Recursive rejection sampling (Jeon et al. 2024, arXiv 2402.14160), children drawn without replacement.

    At a node x_1, x_2, ... are tried in the order they were drawn: x_i is taken with probability p(x_i) / q_i(x_i),
    or else p becomes norm((p - q_i)+). What is left of p after the last refusal is the law of the bonus token.
    """
    dice = sampler.dice(position, "verify")
    path = [0]
    while True:
        p = sampler.law(logits[path[-1]])
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


def traversal(tree: Tree, logits: Tensor, sampler: Chooser, position: int) -> Accepted:
    """Traversal verification (Weng et al. 2025, arXiv 2505.12398): from the leaves up, a whole path at a time.

    A path is reached with probability a = min(1, a_parent p(x) / q(x)) and kept with that probability once all that
    hangs on its last node was refused; a refusal leaves p as norm((a p - q)+) =: r / S and a as S / (S + 1 - a). On a
    chain this is block verification (Sun et al. 2024), which never keeps less, on average, than `rejection`.
    """
    dice = sampler.dice(position, "verify")

    def visit(path: list[int], a: float) -> Accepted | None:
        p = sampler.law(logits[path[-1]])
        for child, q in drawn(tree, path[-1], p):
            token = tree.tokens[child]
            found = visit([*path, child], min(1.0, a * float(p[token] / q[token])))
            if found:
                return found
            rest = (a * p - q).clamp(min=0)
            mass = float(rest.sum())
            lost = 1 - a
            p = normalised(rest, p)
            a = mass / (mass + lost) if mass + lost else 1.0
        return Accepted(path, dice.draw(p)) if dice.accept(a) else None

    return visit([0], 1.0)


def drawn(tree: Tree, node: int, p: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The children of a node in draw order, each with the law `[V]` of its own draw: without those before it.

    Raises ValueError where a child could not have been drawn from it: its drafter's `q` is wrong.
    """
    q = None if tree.q is None else tree.q[node]
    for child in tree.offspring[node]:
        token = tree.tokens[child]
        if q is None:
            yield child, torch.zeros_like(p).index_fill_(0, torch.tensor(token, device=p.device), 1)
        else:
            if not q[token] > 0:
                raise ValueError(
                    f"token {token} was drawn from a law that gives it {float(q[token])}"
                )
            yield child, q
            q = without(q, token)


def without(q: Tensor, token: int) -> Tensor:
    """The law `[V]` of the next draw once `token` is taken; all zeros when nothing is left."""
    rest = q.clone()
    rest[token] = 0
    return rest / rest.sum() if rest.any() else rest


def normalised(weights: Tensor, fallback: Tensor) -> Tensor:
    """`weights` as a law; `fallback` where rounding left none, which only an impossible refusal can do."""
    total = weights.sum()
    return weights / total if total > 0 else fallback


RULES: dict[str, Rule] = {"match": match, "rejection": rejection, "traversal": traversal}


def rule(name: str) -> Rule:
    """A rule by its name. Raises BenchError with the near match."""
    if name not in RULES:
        raise BenchError(f"unknown verification '{name}'", near(name, RULES))
    return RULES[name]
