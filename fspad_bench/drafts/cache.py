"""The draft's own KV cache.

Entries computed from the target's features, and behind them room for a tree's.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from fspad_bench.drafts.fused import FusedNetwork
from fspad_bench.engine.target import TransformersTarget


class DraftCache:
    """Keys and values `[H_kv, slots, D]`: `length` committed entries, then those of a tree."""

    SPARE = 1024

    def __init__(self, target: TransformersTarget, network: FusedNetwork) -> None:
        shape = network.shape
        self.length = 0
        self.network = network
        empty = torch.empty(
            shape.kv_heads, 0, shape.head_dim, device=target.device, dtype=target.dtype
        )
        self.keys = empty
        self.values = empty
        self.ropes = empty

    def twin(self) -> DraftCache:
        """Return an empty cache of the same network."""
        twin = copy(self)
        twin.length = 0
        twin.keys = twin.values = self.keys.new_empty(self.keys.shape[0], 0, self.keys.shape[2])
        return twin

    def clear(self) -> None:
        self.length = 0

    def append(self, k: Tensor, v: Tensor, offset: int = 0) -> None:
        """Write K and V `[H_kv, N, D]` to the slots from `length + offset` on, without committing
        them.
        """
        start = self.length + offset
        end = start + k.shape[1]
        keys, values = self.room(offset + k.shape[1])
        keys[:, start:end] = k
        values[:, start:end] = v

    def room(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the whole buffers, with space for `count` entries after the committed ones."""
        end = self.length + count
        if end > self.keys.shape[1]:
            self.keys = self._grow(self.keys, end)
            self.values = self._grow(self.values, end)
        return self.keys, self.values

    def view(self, count: int = 0) -> tuple[Tensor, Tensor]:
        """Return the committed entries and `count` more."""
        end = self.length + count
        return self.keys[:, :end], self.values[:, :end]

    def rope(self, start: int, end: int) -> Tensor:
        """Return the rotary table of positions `[start, end)`, computed once and extended when it
        runs out.
        """
        if end > self.ropes.shape[1]:
            positions = torch.arange(end + self.SPARE, device=self.keys.device)
            self.ropes = self.network.rope(positions).to(self.keys.dtype)
        return self.ropes[:, start:end]

    def _grow(self, old: Tensor, slots: int) -> Tensor:
        """Return a wider buffer with the entries of the old one, a tree's earlier levels among
        them.
        """
        wide = old.new_empty(old.shape[0], slots + self.SPARE, old.shape[2])
        wide[:, : old.shape[1]] = old
        return wide


def extend_visibility(ancestors: Tensor | None, parents: Tensor) -> Tensor:
    """Return which entries of the tree each of K new nodes attends to: `[K, R + K]`.

    A node attends to what its parent attends to (`ancestors [P, R]`, `parents [K]`) and to itself.
    """
    own = torch.eye(len(parents), dtype=torch.bool, device=parents.device)
    return own if ancestors is None else torch.cat([ancestors[parents], own], dim=1)
