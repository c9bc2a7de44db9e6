"""A graph of drafted tokens whose repeats are drafted once (Gong et al. 2024, arXiv 2407.16207).

Continuations that a language model drafts at different branches often run through the same tokens.
Where a child and the `repeat` tokens before it stand elsewhere in the graph already, in the same
order, an edge leads there: the node is not drafted again, and what follows it there is taken to
follow it here. With `repeat` -1 nothing is merged: the graph is a tree, and with one child a node a
chain.

- No edge closes a cycle: none leads to a node from which its own origin can be reached.
- The target reads a tree, so the graph is unrolled, breadth first, edges after children. A node's
  children all carry different tokens, and so do those of its copies.
- What follows an edge was drafted after another text: that costs acceptance alone, since `match`
  asks for no probability of a draft.
- Under sampling the noise belongs to a position, and so does the order of children: only nodes of
  the same level are merged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp
from typing import NamedTuple

from fspad_bench.core.protocols import Context
from fspad_bench.core.tree import Tree
from fspad_bench.drafts.trees.levels import Levels, leading_children

NEVER = -1


@dataclass(frozen=True)
class GraphShape:
    """The parameters of a graph, under the names of its authors' where they have one.

    - `length` levels at most, of at most `n_tree` children a node, `nodes` of the graph and of the
      tree with the root.
    - `repeat`: how many tokens before a child must agree for it to be merged; -1: never.
    - A child below `prob_threshold` is a leaf, as all below it; one below `sibling_threshold` times
      its best sibling is left out.
    """

    n_tree: int
    repeat: int
    prob_threshold: float
    sibling_threshold: float
    length: int
    nodes: int


@dataclass
class Node:
    """A drafted token, and where it leads: to its `children`, then to `merged` nodes.

    `suffix` are the last tokens of its path, as many as a merge compares; bit i of `above` is set
    where node i leads here.
    """

    token: int
    suffix: tuple[int, ...]
    leaf: bool
    above: int
    children: list[int] = field(default_factory=list)
    merged: list[int] = field(default_factory=list)


class Child(NamedTuple):
    """A token that a draft proposes below a node, and its probability there."""

    node: int
    token: int
    chance: float


class Graph:
    """Nodes by number, the root first; `places` finds one by the tokens that end its path."""

    def __init__(self, context: Context, shape: GraphShape) -> None:
        self.shape = shape
        self.kept = shape.repeat + 1  # tokens of a suffix
        suffix = tuple(context.tokens[-self.kept :]) if self.kept else ()
        self.nodes = [Node(context.tokens[-1], suffix, leaf=False, above=1)]
        self.places: dict[tuple[int, ...], list[int]] = {}
        self.by_level = context.sampler is not None and not context.sampler.greedy

    @property
    def full(self) -> bool:
        return len(self.nodes) >= self.shape.nodes

    def add(self, child: Child, level: int) -> int | None:
        """Merge a child, or append a node for it; return the number of a new node."""
        parent = self.nodes[child.node]
        suffix = (*parent.suffix, child.token)[-self.kept :] if self.kept else ()
        place = (level, *suffix) if self.by_level else suffix
        if self.kept and self._merge(child.node, self.places.get(place, [])):
            return None
        if self.full:
            return None
        number = len(self.nodes)
        leaf = parent.leaf or child.chance < self.shape.prob_threshold
        self.nodes.append(Node(child.token, suffix, leaf, parent.above | 1 << number))
        parent.children.append(number)
        self.places.setdefault(place, []).append(number)
        return number

    def _merge(self, origin: int, alike: list[int]) -> bool:
        """Lead from `origin` to the first of these nodes that does not lead to it."""
        above = self.nodes[origin].above
        for number in alike:
            if not above >> number & 1:
                self.nodes[origin].merged.append(number)
                for node in self.nodes:
                    if node.above >> number & 1:
                        node.above |= above
                return True
        return False

    def unrolled(self, depth: int) -> Tree:
        """Return the tree of its paths, breadth first, at most so deep and of so many nodes."""
        tokens = [self.nodes[0].token]
        parents = [-1]
        level = [(0, 0)]  # (node of the tree, node of the graph)
        for _ in range(depth):
            below = [
                (place, number)
                for place, node in level
                for number in self.nodes[node].children + self.nodes[node].merged
            ][: self.shape.nodes - len(tokens)]
            level = [(len(tokens) + i, number) for i, (_, number) in enumerate(below)]
            tokens += [self.nodes[number].token for _, number in below]
            parents += [place for place, _ in below]
        return Tree(tokens, parents)


def draft_graph(draft: Levels, context: Context, shape: GraphShape, budget: int) -> Graph:
    """Draft a graph below the last committed token, level by level.

    A level's leaves are drafted on as long as any of its nodes is none.
    """
    graph = Graph(context, shape)
    logits = draft.absorb()
    frontier = [0]
    levels = min(budget, shape.length)
    for level in range(levels):
        width = min(shape.n_tree, logits.shape[-1])
        best = leading_children(logits, draft.ids, context, level, width)
        new: list[int] = []
        rows: list[int] = []
        for row, node in enumerate(frontier):
            of_row = slice(row * width, (row + 1) * width)
            chances = [exp(value) for value in best.log_q[of_row]]
            for token, chance in zip(best.tokens[of_row], chances, strict=True):
                if chance < shape.sibling_threshold * chances[0]:
                    break
                number = graph.add(Child(node, token, chance), level)
                if number is not None:
                    new.append(number)
                    rows.append(row)
        leaves = all(graph.nodes[number].leaf for number in new)
        if level + 1 == levels or leaves or (graph.full and shape.repeat < 0):
            break
        logits = draft.expand([graph.nodes[number].token for number in new], rows)
        frontier = new
    return graph
