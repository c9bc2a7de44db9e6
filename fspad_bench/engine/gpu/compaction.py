"""Cache compaction on a GPU: move the accepted nodes' keys and values in place, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fspad_bench.engine.gpu.tensors import Walk


@triton.jit
def _compact(ENTRIES, PATH, COUNT, LENGTH, stride, DIM: tl.constexpr, DIMS: tl.constexpr):
    """One program moves the entries of one layer, of keys or values, of one head.

    DIMS is DIM rounded up to a power of two; `stride` is C * D.
    """
    dims = tl.arange(0, DIMS)
    entries = ENTRIES + tl.program_id(0).to(tl.int64) * stride + tl.load(LENGTH).to(tl.int64) * DIM
    # Nodes ascend along a path, so source >= rank: no entry is overwritten before it is read.
    for rank in range(0, tl.load(COUNT)):
        source = tl.load(PATH + rank)
        moved = tl.load(entries + source * DIM + dims, mask=dims < DIM)
        tl.store(entries + rank * DIM + dims, moved, mask=dims < DIM)


def compact(entries: Tensor, length: Tensor, walk: Walk) -> None:
    """Compact a contiguous cache `[..., C, D]` as `reference.compact` defines."""
    capacity, dim = entries.shape[-2:]
    programs = entries.numel() // (capacity * dim)
    _compact[programs,](
        entries,
        walk.path,
        walk.count,
        length,
        capacity * dim,
        DIM=dim,
        DIMS=triton.next_power_of_2(dim),
    )
