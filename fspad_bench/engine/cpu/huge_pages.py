"""Memory on the CPU in huge pages, for what a forward reads whole: packed weights and a cache.

With 4 kB pages the CPU needs a TLB entry per 64 cache lines, and hardware prefetch stops at each
page boundary. Where a system gives huge pages on request only (Linux's `madvise`), they are
requested here; elsewhere the memory is ordinary.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

MADVISE = getattr(mmap, "MADV_HUGEPAGE", None)
CPU = torch.device("cpu")
CHUNK = 32 << 20  # bytes that tensors of an arena share
ALIGNED = 64  # bytes


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """Return zeros, like `torch.zeros`, in memory of their own."""
    size = prod(shape) * dtype.itemsize
    if MADVISE is None or not size or device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    try:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # out of memory, as a rule: torch says so in its own words
        return torch.zeros(*shape, dtype=dtype, device=device)
    with suppress(OSError):  # a kernel without them
        block.madvise(MADVISE)
    return torch.frombuffer(block, dtype=dtype).view(*shape)


class Arena:
    """Hands out tensors side by side, so that small ones lie in huge pages too.

    Memory goes with a chunk's last.
    """

    def __init__(self) -> None:
        self.chunk = torch.empty(0, dtype=torch.uint8)
        self.used = 0

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return zeros, like `torch.zeros`, beside those handed out before."""
        size = prod(shape) * dtype.itemsize
        if size >= CHUNK:
            return zeros(shape, dtype)
        if self.used + size > len(self.chunk):
            self.chunk = zeros([CHUNK], torch.uint8)
            self.used = 0
        block = self.chunk[self.used : self.used + size]
        self.used += -(-size // ALIGNED) * ALIGNED
        return block.view(dtype).view(*shape)
