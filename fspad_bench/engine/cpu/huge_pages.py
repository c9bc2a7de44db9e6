"""Memory on the CPU in huge pages, for what a forward reads from end to end: packed weights, and a cache's rows.

Of a page of 4 kB a processor must look up the place every 64 cache lines, and what fetches ahead for it stops there.
Where a system gives huge pages only to who asks (Linux's `madvise`), this asks; elsewhere it is memory like any other.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

ASKED = getattr(mmap, "MADV_HUGEPAGE", None)
CPU = torch.device("cpu")
CHUNK = 32 << 20  # bytes that tensors of an arena share
ALIGNED = 64  # bytes


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """As `torch.zeros`, in memory of its own."""
    size = prod(shape) * dtype.itemsize
    if ASKED is None or not size or device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        block.madvise(ASKED)
    return torch.frombuffer(block, dtype=dtype).view(*shape)


class Arena:
    """Hands out tensors side by side, so that small ones lie in huge pages too; memory goes with a chunk's last."""

    def __init__(self) -> None:
        self.chunk = torch.empty(0, dtype=torch.uint8)
        self.used = 0

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As `torch.zeros`."""
        size = prod(shape) * dtype.itemsize
        if size >= CHUNK:
            return zeros(shape, dtype)
        if self.used + size > len(self.chunk):
            self.chunk = zeros([CHUNK], torch.uint8)
            self.used = 0
        found = self.chunk[self.used : self.used + size]
        self.used += -(-size // ALIGNED) * ALIGNED
        return found.view(dtype).view(*shape)
