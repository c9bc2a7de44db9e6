"""Monte-Carlo tree search over tri-grams: which continuations of a pair are worth drafting.

An iteration, as ADED describes it (see `decoders.aded`), T the values of the tri-grams, N visits
and W rewards of a node:

1. Select: from the root down, the child of the highest
   W / N + (c1 + ln((N_parent + c2 + 1) / c2)) * prior * sqrt(N_parent) / (1 + N);
   one without visits comes first.
2. Expand a leaf by all its successors, at its first visit; the prior of a child is its value.
3. Roll out: draw successors in proportion to their values until there are `LENGTH` new tokens.
4. Reward: 1 + the sum of the values along all of the path, added to each node on it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from math import log, sqrt

from fspad_bench.drafts.trigrams import Successors

C1 = 32.0
C2 = 8.0
LENGTH = 3  # tokens of a path, the pair that it begins with aside

After = Callable[[int, int], Successors]


class Node:
    """A token of the search tree. It has no children before it is expanded."""

    __slots__ = ("children", "path", "prior", "reward", "visits")

    def __init__(self, path: tuple[int, ...], prior: float) -> None:
        self.path = path
        self.prior = prior
        self.visits = 0
        self.reward = 0.0
        self.children: list[Node] = []

    def best_child(self) -> Node:
        """Return the child to visit next."""
        weight = (C1 + log((self.visits + C2 + 1) / C2)) * sqrt(self.visits)
        best = self.children[0]
        highest = -1.0
        for child in self.children:
            visits = child.visits
            if not visits:
                return child
            score = child.reward / visits + weight * child.prior / (1 + visits)
            if score > highest:
                highest = score
                best = child
        return best


def most_visited(
    after: After, pair: tuple[int, int], dice: random.Random, iterations: int
) -> list[tuple[int, ...]]:
    """Search from a pair; return the paths of all visited nodes, the most visited first.

    Of equally often visited ones the first that was reached comes first.
    """
    after = cache(after)  # an iteration asks for the same pairs as those before it
    root = Node((), 0.0)
    _expand(after, pair, root)
    if not root.children:
        return []
    nodes: list[Node] = []
    for _ in range(iterations):
        line = [root]
        while line[-1].children and line[-1].visits:
            line.append(line[-1].best_child())
        leaf = line[-1]
        if leaf is not root and not leaf.visits:
            nodes.append(leaf)
            _expand(after, pair, leaf)
        reward = 1 + sum(node.prior for node in line) + _roll_out(after, pair, leaf, dice)
        for node in line:
            node.visits += 1
            node.reward += reward
    nodes.sort(key=lambda node: -node.visits)
    return [node.path for node in nodes]


def _expand(after: After, pair: tuple[int, int], node: Node) -> None:
    """Give a node its children, unless its path is as long as any may be."""
    if len(node.path) < LENGTH:
        successors = after(*(*pair, *node.path)[-2:])
        node.children = [Node((*node.path, token), value) for token, value in successors]


def _roll_out(after: After, pair: tuple[int, int], leaf: Node, dice: random.Random) -> float:
    """Return the sum of the values along a random continuation of a leaf."""
    first, second = (*pair, *leaf.path)[-2:]
    total = 0.0
    for _ in range(LENGTH - len(leaf.path)):
        successors = after(first, second)
        if not successors:
            break
        token, value = _draw(successors, dice)
        first = second
        second = token
        total += value
    return total


def _draw(successors: Successors, dice: random.Random) -> tuple[int, float]:
    """Return a successor, drawn in proportion to the values."""
    left = dice.random() * sum(value for _, value in successors)
    for successor in successors:
        left -= successor[1]
        if left < 0:
            return successor
    return successors[-1]
