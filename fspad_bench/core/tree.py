"""The draft tree: candidate tokens, each with a parent.

- Node 0, the root, is the last committed token; every other node is a guess at what follows its
  parent.
- A parent precedes its children and siblings differ, so a node is known by the path that leads to
  it.
- The parents give the ancestor bits, which mask attention, and the children, which verification
  walks.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

WORD = 64


@dataclass(frozen=True)
class Tree:
    """`tokens[i]` follows `tokens[parents[i]]`; `parents[0] == -1`.

    `q [N, V]`, where a drafter draws its children: the distribution that each node's first child
    was drawn from; the next ones were drawn from what is left of it, without replacement, in the
    order of the nodes. Tokens and parents may be whole numbers of numpy or torch. Raises TypeError
    for what is none, ValueError when a parent does not precede its child or two siblings carry the
    same token.
    """

    tokens: Sequence[int]
    parents: Sequence[int]
    q: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("tokens", "parents"):
            values = getattr(self, name)
            if any(type(value) is not int for value in values):  # torch's do not hash by value
                object.__setattr__(self, name, [operator.index(value) for value in values])
        if len(self.tokens) != len(self.parents) or not self.tokens or self.parents[0] != -1:
            raise ValueError("a tree has one parent a token, and -1 for the root")
        if any(not 0 <= parent < node for node, parent in enumerate(self.parents) if node):
            raise ValueError(f"a parent must precede its child: {list(self.parents)}")
        if len(self.children) != len(self.tokens) - 1:
            raise ValueError("two siblings carry the same token")

    @classmethod
    def root(cls, token: int) -> Tree:
        """Return the tree of vanilla decoding: one node."""
        return cls((token,), (-1,))

    @classmethod
    def chain(cls, token: int, draft: Sequence[int]) -> Tree:
        """Return `token` followed by `draft`, one after the other."""
        return cls((token, *draft), range(-1, len(draft)))

    @classmethod
    def from_paths(cls, token: int, paths: Sequence[Sequence[int]]) -> Tree:
        """Return the trie of several continuations of `token`."""
        tokens = [token]
        parents = [-1]
        nodes = {}
        for path in paths:
            node = 0
            for step in map(operator.index, path):
                if (node, step) not in nodes:
                    nodes[node, step] = len(tokens)
                    tokens.append(step)
                    parents.append(node)
                node = nodes[node, step]
        return cls(tokens, parents)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def children(self) -> dict[tuple[int, int], int]:
        """Map (node, token) to the child of `node` that carries `token`."""
        return {(self.parents[i], self.tokens[i]): i for i in range(1, len(self.tokens))}

    @cached_property
    def offspring(self) -> list[list[int]]:
        """The children of each node, in the order in which they were added."""
        offspring: list[list[int]] = [[] for _ in self.tokens]
        for node, parent in enumerate(self.parents[1:], start=1):
            offspring[parent].append(node)
        return offspring

    @cached_property
    def depths(self) -> list[int]:
        """Edges from the root, one a node."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return depths

    def followed(self, tokens: Sequence[int]) -> list[int]:
        """Return the nodes below the root that these tokens lead through, as far as they exist."""
        nodes: list[int] = []
        for token in tokens:
            edge = (nodes[-1] if nodes else 0, token)
            if edge not in self.children:
                break
            nodes.append(self.children[edge])
        return nodes

    def decided_by(self, other: Tree) -> list[int]:
        """Return the nodes below the root on which a step with the tree `other` decides: those
        whose parents are nodes of that, reached by the same tokens.
        """
        place = {0: 0}
        decided = []
        for node in range(1, len(self)):
            parent = place.get(self.parents[node])
            if parent is None:
                continue
            decided.append(node)
            edge = (parent, self.tokens[node])
            if edge in other.children:
                place[node] = other.children[edge]
        return decided

    @cached_property
    def ancestry(self) -> list[int]:
        """One integer a node: bit j is set when j is an ancestor of the node or the node itself."""
        ancestry: list[int] = []
        extend_ancestry(ancestry, self.parents)
        return ancestry

    @cached_property
    def bits(self) -> Tensor:
        """`[N, ceil(N / 64)]` int64, the ancestry in words.

        Bit 63 is the sign: read with `(b >> j) & 1`.
        """
        return ancestor_bits(self.ancestry)

    def visible(self) -> Tensor:
        """Return `[N, N]` bool: node i attends to node j."""
        return unpack_bits(self.bits, len(self))


class AcceptedPath(NamedTuple):
    """The path that one step accepted in its tree: the tree's parents, and the accepted nodes, root
    first.

    Kept in place of the tree, whose distributions are large.
    """

    parents: Sequence[int]
    nodes: Sequence[int]

    @property
    def depth(self) -> int:
        """The tree's deepest level, 0 where nothing was drafted."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return max(depths)

    @property
    def ranks(self) -> list[int]:
        """The number of earlier siblings of each accepted node below the root."""
        return [self._children(self.parents[node], before=node) for node in self.nodes[1:]]

    @property
    def refused(self) -> int:
        """The number of children of the last accepted node, none of which was accepted."""
        return self._children(self.nodes[-1], before=len(self.parents))

    def _children(self, node: int, *, before: int) -> int:
        return sum(parent == node for parent in self.parents[:before])


def extend_ancestry(ancestry: list[int], parents: Sequence[int]) -> None:
    """Append the ancestry of nodes with these parents, each an earlier node, or -1 for none."""
    for parent in parents:
        own = 1 << len(ancestry)
        ancestry.append(own if parent < 0 else ancestry[parent] | own)


def ancestor_bits(ancestry: Sequence[int]) -> Tensor:
    """Return the ancestry of N nodes, one integer each, in words: `[N, ceil(N / 64)]` int64."""
    shifts = range(0, len(ancestry), WORD)
    return torch.tensor(
        [[_signed(row >> shift) for shift in shifts] for row in ancestry], dtype=torch.int64
    )


def unpack_bits(bits: Tensor, columns: int) -> Tensor:
    """Return ancestor bits `[N, W]` as bool `[N, columns]`."""
    nodes = torch.arange(columns, device=bits.device)
    return (bits[:, nodes // WORD] >> (nodes % WORD)) & 1 == 1


def _signed(row: int) -> int:
    """Return the lowest 64 bits of `row` as a two's complement integer."""
    word = row & (1 << WORD) - 1
    return word - (1 << WORD) if word >> WORD - 1 else word


def as_tree(proposed: object) -> Tree:
    """Return what a drafter proposed. Raises TypeError unless it is a tree."""
    if not isinstance(proposed, Tree):
        raise TypeError(f"propose() returned {type(proposed).__name__}, not a Tree")
    return proposed
