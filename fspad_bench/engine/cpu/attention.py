"""The compiled attention backend: rotation, cache write and attention of a tree in one call
(`native.cpp`).

A query sums over the keys it sees in one order, wherever they lie, so a tree's node gets the bits
that its path would get one token at a time. Prefills, whose many rows torch serves well, are
torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fspad_bench.engine.attention import Attend, HeadShape, Pending, TorchAttention
from fspad_bench.engine.cache import KVCache
from fspad_bench.engine.cpu.native import Native


class CompiledAttention(TorchAttention):
    name = "native"

    def __init__(self, shape: HeadShape, native: Native) -> None:
        super().__init__(shape)
        self.native = native

    def tree(self, cache: KVCache, pending: Pending) -> Attend:
        visible = pending.visible
        firsts = {window: _first_keys(pending, window) for window in self.shape.kinds}
        start = pending.start
        sizes = [self.shape.heads, 2 * self.shape.kv_heads]

        def attend(layer: int, projections: Tensor, rope: Tensor) -> Tensor:
            q, kv = projections.split(sizes, dim=1)
            return self.native.attend(
                q, kv, rope, cache.keys[layer], cache.values[layer], start, visible,
                self.shape.scaling, firsts[self.shape.window(layer)],
            )  # fmt: skip

        return attend


def _first_keys(pending: Pending, window: int | None) -> Tensor | None:
    """Return how many of its first keys each new entry leaves out, `[N]`; None: no entry any.

    An entry's keys are those of its path, so the number of a key is its position.
    """
    firsts = pending.first_seen(window)
    return None if firsts is None else torch.tensor(firsts)
