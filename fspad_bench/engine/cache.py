"""The KV cache of one sequence: preallocated, written in place, compacted in place.

- One tensor holds the keys and values of all layers, so that a kernel can compact them in one
  launch; of a model that is spread over devices, one tensor for the layers on each.
- `keep` moves the entries of an accepted path, at most its length, to where they belong. Nothing
  here grows with the prefix.
- The cache does not know how many of its entries are valid: that is the session's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fspad_bench.engine.cpu import huge_pages
from fspad_bench.engine.placement import runs

Compact = Callable[[Tensor, int, Sequence[int]], None]


class KVCache:
    """Keys and values of every layer: `parts`, each `[its layers, 2, H_kv, slots, D]`."""

    def __init__(
        self,
        devices: Sequence[torch.device],
        kv_heads: int,
        slots: int,
        head_dim: int,
        dtype: torch.dtype,
        compact: Compact | None = None,
    ) -> None:
        """Allocate the entries of layers on these devices, one a layer.

        `compact(entries, start, path)`, or `move_entries`, does `keep`.
        """
        rest = (2, kv_heads, slots, head_dim)
        self.parts = [
            huge_pages.zeros((count, *rest), dtype, device) for device, count in runs(devices)
        ]
        layers = [layer for part in self.parts for layer in part]
        self.keys = [layer[0] for layer in layers]
        self.values = [layer[1] for layer in layers]
        self.compact = compact or move_entries
        self.writer: object | None = None
        """The session whose pending entries it holds."""

    @property
    def entries(self) -> Tensor:
        """The one tensor of all layers. Raises RuntimeError where there are several."""
        if len(self.parts) > 1:
            raise RuntimeError("the cache is spread over devices: it has no one tensor of entries")
        return self.parts[0]

    @property
    def slots(self) -> int:
        return self.parts[0].shape[3]

    def first(self, length: int) -> Tensor:
        """Copy the first entries of all layers, `[layers, 2, H_kv, length, D]`, to one device."""
        device = self.parts[0].device
        return torch.cat([part[..., :length, :].to(device) for part in self.parts])

    def keep(self, start: int, path: Sequence[int]) -> None:
        """Move the entries at `start + path`, ascending, to `start, start + 1, ...`."""
        if path and path[-1] != len(path) - 1:
            for entries in self.parts:
                self.compact(entries, start, path)


def move_entries(entries: Tensor, start: int, path: Sequence[int]) -> None:
    """Move the entries `[..., slots, D]` at `start + path`, ascending, to `start` and on."""
    source = torch.tensor(path, device=entries.device) + start
    end = start + len(path)
    entries[..., start:end, :] = entries[..., source, :]
