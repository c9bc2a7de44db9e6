"""The draft's own KV cache: rows computed from the target's features, and behind them room for a tree's."""

from __future__ import annotations

import torch
from torch import Tensor

from fspad_bench.drafts.fused import LeanNetwork
from fspad_bench.engine.target import TransformersTarget


class DraftRows:
    """The draft's keys and values: `length` committed rows, and behind them room for a tree's."""

    SPARE = 1024

    def __init__(self, target: TransformersTarget, network: LeanNetwork) -> None:
        self.length = 0
        shape = network.shape
        empty = torch.empty(
            shape.kv_heads, 0, shape.head_dim, device=target.device, dtype=target.dtype
        )
        self.keys = self.values = self.ropes = empty

    def clear(self) -> None:
        self.length = 0

    def append(self, k: Tensor, v: Tensor, behind: int = 0) -> None:
        """Write K and V `[H_kv, N, D]` from row `length + behind` on, without counting them as committed."""
        start = self.length + behind
        end = start + k.shape[1]
        keys, values = self.room(behind + k.shape[1])
        keys[:, start:end] = k
        values[:, start:end] = v

    def room(self, behind: int) -> tuple[Tensor, Tensor]:
        """The whole buffers `[H_kv, capacity, D]`, with space for so many rows behind the committed ones."""
        end = self.length + behind
        if end > self.keys.shape[1]:
            self.keys, self.values = self._grown(self.keys, end), self._grown(self.values, end)
        return self.keys, self.values

    def view(self, behind: int = 0) -> tuple[Tensor, Tensor]:
        end = self.length + behind
        return self.keys[:, :end], self.values[:, :end]

    def rope(self, network: LeanNetwork, start: int, end: int) -> Tensor:
        """The rotary table of positions `[start, end)`, computed once and extended when it runs out."""
        if end > self.ropes.shape[1]:
            positions = torch.arange(end + self.SPARE, device=self.keys.device)
            self.ropes = network.rope(positions).to(self.keys.dtype)
        return self.ropes[:, start:end]

    def _grown(self, old: Tensor, rows: int) -> Tensor:
        """A wider buffer with the rows of the old one, a tree's earlier levels among them."""
        wide = old.new_empty(old.shape[0], rows + self.SPARE, old.shape[2])
        wide[:, : old.shape[1]] = old
        return wide


def lineage(ancestors: Tensor | None, parents: Tensor) -> Tensor:
    """Which rows of the tree each of K new nodes sees: its parent's and itself. `[P, R]`, `[K]` -> `[K, R + K]`."""
    own = torch.eye(len(parents), dtype=torch.bool, device=parents.device)
    return own if ancestors is None else torch.cat([ancestors[parents], own], dim=1)
