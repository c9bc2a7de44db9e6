"""Tree attention on a GPU: every node sees the prefix and its own ancestors, K and V are read once.

The query heads that share a key-value head are packed with the nodes into the rows of one tile (row = node * G + g), so
even a single node fills a matrix product. The prefix is split over programs that keep a running soft-max each
(flash-decoding, Dao et al. 2023); a second kernel joins them. Tiles that lie in the prefix test no mask; in the tree a
node's ancestor bits decide. The prefix's length lives on the device and the split does not depend on it, so one
captured launch serves a whole generation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fspad_bench.engine.gpu.tensors import interpreted

LOG2E = 1.4426950408889634
SHORT = 256  # rows of the cache that are worth a program of their own
MOST_SPLITS = 64
JOINED = 16  # rows that one program joins
TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit
def _tile(
    q, keys, values, seen, m, total, acc, columns, dims, stride,
    SCALE: tl.constexpr, DIM: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """One tile of columns joins the running soft-max: maximum m, sum `total`, weighted values `acc`."""
    k = tl.load(
        keys + columns[None, :] * stride + dims[:, None], mask=(dims < DIM)[:, None], other=0.0
    )
    scores = tl.dot(q, k.to(FACTOR), input_precision="ieee") * SCALE
    scores = tl.where(seen, scores, float("-inf"))
    top = tl.maximum(m, tl.max(scores, 1))
    safe = tl.where(top == float("-inf"), 0.0, top)  # a split may have seen masked columns only
    p = tl.exp2(scores - safe[:, None])
    shrink = tl.exp2(m - safe)
    v = tl.load(
        values + columns[:, None] * stride + dims[None, :], mask=(dims < DIM)[None, :], other=0.0
    )
    acc = acc * shrink[:, None] + tl.dot(p.to(FACTOR), v.to(FACTOR), input_precision="ieee")
    return top, total * shrink + tl.sum(p, 1), acc


@triton.jit(do_not_specialize=["NODES", "WORDS"])
def _split(
    Q, K, V, BITS, LENGTH, OUT, PART, MAXIMA, SUMS, NODES, WORDS, query_head, query_node, cache_head, cache_row,
    GROUP: tl.constexpr, SPLITS: tl.constexpr, SCALE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr, DIMS: tl.constexpr,
    FACTOR: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    split = tl.program_id(2)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    node = rows // GROUP
    query = head * GROUP + rows % GROUP
    live = rows < NODES * GROUP
    dims = tl.arange(0, DIMS)
    length = tl.load(LENGTH)
    end = length + NODES
    chunk = tl.cdiv(tl.cdiv(end, SPLITS), COLUMNS) * COLUMNS
    first = split * chunk
    last = tl.minimum((split + 1) * chunk, end)
    q = tl.load(
        Q + query[:, None] * query_head + node[:, None] * query_node + dims[None, :],
        mask=live[:, None] & (dims < DIM)[None, :], other=0.0,
    ).to(FACTOR)  # fmt: skip
    keys = K + head.to(tl.int64) * cache_head
    values = V + head.to(tl.int64) * cache_head
    m = tl.full([ROWS], float("-inf"), WIDE)
    total = tl.zeros([ROWS], WIDE)
    acc = tl.zeros([ROWS, DIMS], WIDE)
    plain = tl.maximum(first, tl.minimum(last, length // COLUMNS * COLUMNS))
    for start in range(first, plain, COLUMNS):  # tiles of the prefix: all seen
        columns = start + tl.arange(0, COLUMNS)
        m, total, acc = _tile(
            q, keys, values, live[:, None], m, total, acc, columns, dims, cache_row, SCALE, DIM, FACTOR
        )  # fmt: skip
    for start in tl.range(
        plain, last, COLUMNS, num_stages=1
    ):  # the few tiles that touch the tree, not prefetched
        wanted = start + tl.arange(0, COLUMNS)
        columns = tl.minimum(wanted, last - 1)
        behind = tl.maximum(columns - length, 0)
        word = tl.load(
            BITS + node[:, None] * WORDS + (behind // 64)[None, :], mask=live[:, None], other=0
        )
        related = ((word >> (behind % 64).to(tl.int64)[None, :]) & 1) == 1
        seen = live[:, None] & (wanted < last)[None, :] & ((columns < length)[None, :] | related)
        m, total, acc = _tile(
            q, keys, values, seen, m, total, acc, columns, dims, cache_row, SCALE, DIM, FACTOR
        )  # fmt: skip
    if SPLITS == 1:
        total = tl.where(live, total, 1.0)
        out = OUT + (query * NODES + node)[:, None] * DIM + dims[None, :]
        tl.store(
            out,
            (acc / total[:, None]).to(OUT.dtype.element_ty),
            mask=live[:, None] & (dims < DIM)[None, :],
        )
    else:
        at = (split * tl.num_programs(1) + head) * NODES * GROUP + rows
        tl.store(PART + at[:, None] * DIMS + dims[None, :], acc, mask=live[:, None])
        tl.store(MAXIMA + at, m, mask=live)
        tl.store(SUMS + at, total, mask=live)


@triton.jit(do_not_specialize=["NODES"])
def _join(
    OUT, PART, MAXIMA, SUMS, NODES, GROUP: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, DIM: tl.constexpr, DIMS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    dims = tl.arange(0, DIMS)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = rows < NODES * GROUP
    m = tl.full([ROWS], float("-inf"), WIDE)
    total = tl.zeros([ROWS], WIDE)
    acc = tl.zeros([ROWS, DIMS], WIDE)
    for split in range(SPLITS):
        at = (split * tl.num_programs(1) + head) * NODES * GROUP + rows
        other = tl.load(MAXIMA + at, mask=live, other=float("-inf"))
        top = tl.maximum(m, other)
        safe = tl.where(top == float("-inf"), 0.0, top)
        mine = tl.exp2(m - safe)
        theirs = tl.exp2(other - safe)
        part = tl.load(PART + at[:, None] * DIMS + dims[None, :], mask=live[:, None], other=0.0)
        acc = acc * mine[:, None] + part * theirs[:, None]
        total = total * mine + tl.load(SUMS + at, mask=live, other=1.0) * theirs
        m = top
    out = (
        OUT + ((head * GROUP + rows % GROUP) * NODES + rows // GROUP)[:, None] * DIM + dims[None, :]
    )
    found = acc / tl.where(live, total, 1.0)[:, None]  # a node sees itself, so no live row is empty
    tl.store(out, found.to(OUT.dtype.element_ty), mask=live[:, None] & (dims < DIM)[None, :])


def attend(
    query: Tensor, keys: Tensor, values: Tensor, bits: Tensor, length: Tensor, scale: float
) -> Tensor:
    """query `[H, N, D]` at the rows `length ..` of keys and values `[H_kv, C, D]`, bits `[N, W]` -> `[H, N, D]`."""
    heads, nodes, dim = query.shape
    kv_heads, capacity, _ = keys.shape
    group = heads // kv_heads
    dims = max(16, triton.next_power_of_2(dim))
    rows = min(
        64 if query.dtype.itemsize == 2 else 16, max(16, triton.next_power_of_2(nodes * group))
    )
    tiles = triton.cdiv(nodes * group, rows)
    splits = _splits(capacity, tiles * kv_heads, query.device)
    out = query.new_empty(heads, nodes, dim)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    columns, stages = tile(query.dtype, rows, dims)
    partial = query.new_empty(
        splits if splits > 1 else 0, kv_heads, nodes * group, dims, dtype=wide
    )
    maxima, sums = query.new_empty(2, splits, kv_heads, nodes * group, dtype=wide)
    _split[tiles, kv_heads, splits](
        query, keys, values, bits, length, out, partial, maxima, sums, nodes, bits.shape[1],
        query.stride(0), query.stride(1), keys.stride(0), keys.stride(1),
        GROUP=group, SPLITS=splits, SCALE=scale * LOG2E,
        ROWS=rows, COLUMNS=columns, DIM=dim, DIMS=dims,
        FACTOR=_factor(query.dtype), WIDE=TYPES[wide], num_stages=stages,
    )  # fmt: skip
    if splits > 1:
        _join[triton.cdiv(nodes * group, JOINED), kv_heads](
            out, partial, maxima, sums, nodes, GROUP=group, SPLITS=splits,
            ROWS=JOINED, DIM=dim, DIMS=dims, WIDE=TYPES[wide],
        )  # fmt: skip
    return out


def tile(dtype: torch.dtype, rows: int, dims: int) -> tuple[int, int]:
    """Columns of a tile, and how many tiles are on their way at once: what fits the shared memory of smaller cards."""
    if dtype.itemsize > 2:
        return 32, 2
    return 64, 3 if rows * dims <= 32 * 128 else 2


def _factor(dtype: torch.dtype) -> tl.dtype:
    """What the matrix products multiply; the interpreter knows no products of 16 bits."""
    return tl.float32 if interpreted() and dtype.itemsize == 2 else TYPES[dtype]


def _splits(capacity: int, programs: int, device: torch.device) -> int:
    """A power of two that fills the device without cutting the cache into rows too few to be worth a program."""
    useful = max(1, capacity // SHORT)
    if device.type == "cuda":
        useful = min(
            useful,
            triton.cdiv(
                2 * torch.cuda.get_device_properties(device).multi_processor_count, programs
            ),
        )
    return min(MOST_SPLITS, triton.next_power_of_2(useful))
