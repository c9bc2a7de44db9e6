"""The KV cache of a target: preallocated, written in place, compacted in place.

`update` writes the new rows behind the committed ones and returns a view of all; `keep` then moves the rows of the
accepted path, at most its length, to where they belong and forgets the rest. Nothing here grows with the prefix. Where
all layers are on one device their rows are one tensor, which a kernel compacts in one launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from fspad_bench.engine import gpu as kernels
from fspad_bench.engine.gpu.tensors import Walk


class Rows(CacheLayerMixin):
    """One layer's keys and values, `[1, H_kv, capacity, D]` each, of which the first `length` rows are valid."""

    def __init__(self, capacity: int, rows: Tensor | None = None) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0
        if rows is not None:
            (self.keys, self.values), self.is_initialized = rows[:, None], True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, heads, _, dim = key_states.shape
        self.keys = key_states.new_zeros(batch, heads, self.capacity, dim)
        self.values = value_states.new_zeros(batch, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.advance(key_states.shape[-2])
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def advance(self, rows: int) -> int:
        """Count so many more rows, which the caller writes, and say which is the first of them."""
        self.length += rows
        return self.length - rows

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return self.capacity

    get_max_cache_shape = get_max_length  # the name of the same method in transformers 5.17


class TreeCache(Cache):
    """All layers' rows, able to keep one path of a tree and drop its other nodes."""

    def __init__(self, layers: int, capacity: int, rows: Tensor | None = None) -> None:
        """`rows [layers, 2, H_kv, capacity, D]` holds keys and values; without it each layer makes its own."""
        super().__init__(
            layers=[Rows(capacity, None if rows is None else rows[n]) for n in range(layers)]
        )
        self.capacity = capacity
        self.rows = rows

    @property
    def length(self) -> int:
        return self.layers[0].length

    def clear(self) -> None:
        """Forget every row; the buffers stay."""
        self.rewind(0)

    def rewind(self, length: int) -> None:
        """Forget every row from `length` on."""
        for layer in self.layers:
            layer.length = length

    def keep(self, start: int, path: Sequence[int]) -> None:
        """Of the rows from `start` on keep those at `start + path`, ascending, as the next `len(path)` rows."""
        end = start + len(path)
        if path[-1] != len(path) - 1:
            device = self.layers[0].keys.device
            found = kernels.chosen(device)
            if found and self.rows is not None:
                words = torch.tensor([start, len(path), *path], dtype=torch.int32, device=device)
                found.compact(self.rows, words[:1], Walk(words[2:], words[1], words[2]))
            else:
                self._move(start, end, torch.tensor(path, device=device) + start)
        self.rewind(end)

    def _move(self, start: int, end: int, moved: Tensor) -> None:
        if self.rows is not None:
            self.rows[..., start:end, :] = self.rows[..., moved, :]
            return
        for layer in self.layers:
            rows = moved.to(layer.keys.device)
            layer.keys[:, :, start:end] = layer.keys[:, :, rows]
            layer.values[:, :, start:end] = layer.values[:, :, rows]
