"""The KV cache of one sequence: preallocated, written in place, compacted in place.

- One tensor holds the keys and values of all layers, so that a kernel can compact them in one
  launch.
- `keep` moves the entries of an accepted path, at most its length, to where they belong. Nothing
  here grows with the prefix.
- The cache does not know how many of its entries are valid: that is the session's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fspad_bench.engine.cpu import huge_pages

Compact = Callable[[Tensor, int, Sequence[int]], None]


class KVCache:
    """Keys and values of every layer, `entries [layers, 2, H_kv, slots, D]`."""

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        slots: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        compact: Compact | None = None,
    ) -> None:
        """Allocate the entries; `compact(entries, start, path)`, or `move_entries`, does `keep`."""
        shape = (layers, 2, kv_heads, slots, head_dim)
        self.entries = huge_pages.zeros(shape, dtype, device)
        self.keys = [layer[0] for layer in self.entries]
        self.values = [layer[1] for layer in self.entries]
        self.compact = compact or move_entries
        self.writer: object | None = None
        """The session whose pending entries it holds."""

    @property
    def slots(self) -> int:
        return self.entries.shape[3]

    def keep(self, start: int, path: Sequence[int]) -> None:
        """Move the entries at `start + path`, ascending, to `start, start + 1, ...`."""
        if path and path[-1] != len(path) - 1:
            self.compact(self.entries, start, path)


def move_entries(entries: Tensor, start: int, path: Sequence[int]) -> None:
    """Move the entries `[..., slots, D]` at `start + path`, ascending, to `start` and on."""
    source = torch.tensor(path, device=entries.device) + start
    end = start + len(path)
    entries[..., start:end, :] = entries[..., source, :]
