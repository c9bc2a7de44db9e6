"""The one data structure of the field: draft tokens as a tree.

Node 0 is the last committed token, already final; every other node is a guess at what follows its parent. A parent
precedes its children and siblings differ, so a node is known by the path that leads to it. From the parents
follow the ancestor bits, which mask attention, and the children, which verification walks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

WORD = 64


@dataclass(frozen=True)
class Tree:
    """`tokens[i]` follows `tokens[parents[i]]`; `parents[0] == -1`.

    `q`, where a drafter draws its children, is the law that each node's first child was drawn from, `[N, V]`; the
    next ones were drawn from what is left of it, without replacement, in the order of the nodes.
    Raises ValueError when a parent does not precede its child or two siblings carry the same token.
    """

    tokens: Sequence[int]
    parents: Sequence[int]
    q: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents) or not self.tokens or self.parents[0] != -1:
            raise ValueError("a tree has one parent a token, and -1 for the root")
        if any(not 0 <= parent < node for node, parent in enumerate(self.parents) if node):
            raise ValueError(f"a parent must precede its child: {list(self.parents)}")
        if len(self.children) != len(self.tokens) - 1:
            raise ValueError("two siblings carry the same token")

    @classmethod
    def root(cls, token: int) -> Tree:
        """The tree of vanilla decoding: one node."""
        return cls((token,), (-1,))

    @classmethod
    def chain(cls, token: int, draft: Sequence[int]) -> Tree:
        """`token`, then `draft` one after the other."""
        return cls((token, *draft), range(-1, len(draft)))

    @classmethod
    def from_paths(cls, token: int, paths: Sequence[Sequence[int]]) -> Tree:
        """The trie of several continuations of `token`."""
        tokens = [token]
        parents = [-1]
        nodes = {}
        for path in paths:
            node = 0
            for step in path:
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
        """(node, token) -> the child of `node` that carries `token`."""
        return {(self.parents[i], self.tokens[i]): i for i in range(1, len(self.tokens))}

    @cached_property
    def offspring(self) -> list[list[int]]:
        """The children of every node, in the order in which they were added."""
        found: list[list[int]] = [[] for _ in self.tokens]
        for node, parent in enumerate(self.parents[1:], start=1):
            found[parent].append(node)
        return found

    @cached_property
    def depths(self) -> list[int]:
        """Edges from the root, one a node."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return depths

    @cached_property
    def ancestry(self) -> list[int]:
        """One integer a node: bit j is set when j is an ancestor of the node or the node itself."""
        rows = [1]
        for node, parent in enumerate(self.parents[1:], start=1):
            rows.append(rows[parent] | 1 << node)
        return rows

    @cached_property
    def bits(self) -> Tensor:
        """`[N, ceil(N / 64)]` int64, the ancestry in words. Bit 63 is the sign: read with `(b >> j) & 1`."""
        words = range(0, len(self), WORD)
        signed = [[_signed(row >> shift) for shift in words] for row in self.ancestry]
        return torch.tensor(signed, dtype=torch.int64)

    def visible(self) -> Tensor:
        """`[N, N]` bool: node i attends to node j."""
        columns = torch.arange(len(self))
        return (self.bits[:, columns // WORD] >> (columns % WORD)) & 1 == 1


def _signed(row: int) -> int:
    """The lowest 64 bits of `row` as a two's complement integer."""
    word = row & (1 << WORD) - 1
    return word - (1 << WORD) if word >> WORD - 1 else word
