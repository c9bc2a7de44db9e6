"""Compaction on a GPU: the accepted nodes' keys and values move to where they belong, in place, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fspad_bench.engine.gpu.tensors import Walk


@triton.jit
def _compact(ROWS, PATH, COUNT, LENGTH, stride, DIM: tl.constexpr, DIMS: tl.constexpr):
    dims = tl.arange(0, DIMS)
    rows = ROWS + tl.program_id(0).to(tl.int64) * stride + tl.load(LENGTH).to(tl.int64) * DIM
    for rank in range(
        0, tl.load(COUNT)
    ):  # a row only moves down, and the path ascends: none is overwritten unread
        source = tl.load(PATH + rank)
        moved = tl.load(rows + source * DIM + dims, mask=dims < DIM)
        tl.store(rows + rank * DIM + dims, moved, mask=dims < DIM)


def compact(rows: Tensor, length: Tensor, found: Walk) -> None:
    """Of the rows from `length` on of `[..., C, D]`, contiguous, keep those of the path as the next ones, in place."""
    capacity, dim = rows.shape[-2:]
    parts = rows.numel() // (capacity * dim)
    _compact[parts,](
        rows,
        found.path,
        found.count,
        length,
        capacity * dim,
        DIM=dim,
        DIMS=triton.next_power_of_2(dim),
    )
