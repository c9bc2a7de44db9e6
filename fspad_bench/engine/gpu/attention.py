"""Tree attention on a GPU: every node sees the prefix and its own ancestors; K and V are read once.

- The query heads that share a key-value head are packed with the nodes into the rows of one tile
  (row = node * G + g for the G heads of a group), so that one node already fills a matrix product.
- The prefix is split over programs with a running soft-max each (flash-decoding, Dao et al. 2023);
  a second kernel joins the splits.
- Tiles inside the prefix have no mask. In the tree a node's ancestor bits decide.
- Through a window every tile has a mask of positions, and tiles before the root's window are not
  read.
- The prefix length lives on the device and does not decide the number of splits, so one captured
  launch serves a whole generation.

Names: H query heads, H_kv key-value heads, N nodes, D = DIM the head dimension, DIMS = D rounded up
to a power of two, C entries of the cache, R = ROWS and B = COLUMNS the sides of a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fspad_bench.engine.gpu.tensors import interpreted

LOG2E = 1.4426950408889634
MIN_SPLIT = 256  # cache entries that are worth a program of their own
MAX_SPLITS = 64
JOINED = 16  # rows that one program of `_join` handles
TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@triton.jit
def _tile(
    q, keys, values, visible, m, total, acc, columns, dims, stride,
    SCALE: tl.constexpr, DIM: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """Add one tile of B columns to the running soft-max of R rows.

    m [R] is the maximum so far, `total` [R] the sum of exponentials relative to it, and `acc`
    [R, DIMS] the values weighted by them. SCALE includes log2(e), because exp2 is used.
    """
    k = tl.load(  # [DIMS, B]
        keys + columns[None, :] * stride + dims[:, None], mask=(dims < DIM)[:, None], other=0.0
    )
    products = tl.dot(q, k.to(FACTOR), input_precision="ieee") * SCALE  # [R, B]
    products = tl.where(visible, products, float("-inf"))
    top = tl.maximum(m, tl.max(products, 1))
    # A row that has seen only masked columns has top = -inf, and -inf - -inf would be NaN.
    safe = tl.where(top == float("-inf"), 0.0, top)
    p = tl.exp2(products - safe[:, None])
    shrink = tl.exp2(m - safe)  # rescales what was summed relative to the old maximum
    v = tl.load(  # [B, DIMS]
        values + columns[:, None] * stride + dims[None, :], mask=(dims < DIM)[None, :], other=0.0
    )
    acc = acc * shrink[:, None] + tl.dot(p.to(FACTOR), v.to(FACTOR), input_precision="ieee")
    return top, total * shrink + tl.sum(p, 1), acc


@triton.jit
def _related(BITS, WORDS, node, live, columns, length):
    """Return whether each row's node descends from each column's or is it, [R, B].

    Columns in the prefix read the root's bit; the caller tells them apart.
    """
    other = tl.maximum(columns - length, 0)  # [B]: the node that a column belongs to
    word = tl.load(  # [R, B]: the word of the row's bits that holds that node's bit
        BITS + node[:, None] * WORDS + (other // 64)[None, :], mask=live[:, None], other=0
    )
    return ((word >> (other % 64).to(tl.int64)[None, :]) & 1) == 1


@triton.jit
def _visible(
    BITS, DEPTHS, WORDS, node, live, wanted, columns, length, last, nearest, WINDOW: tl.constexpr
):  # fmt: skip
    """Return which columns of a tile that touches the tree each row sees, [R, B].

    `columns` are the wanted ones before `last`.
    """
    related = _related(BITS, WORDS, node, live, columns, length)
    visible = live[:, None] & (wanted < last)[None, :] & ((columns < length)[None, :] | related)
    if WINDOW:
        depth = tl.load(DEPTHS + tl.maximum(columns - length, 0))  # [B]
        positions = tl.where(columns < length, columns, length + depth)
        visible = visible & (positions[None, :] >= nearest[:, None])
    return visible


@triton.jit
def _queries(Q, query, node, live, dims, query_head, query_node, DIM: tl.constexpr):
    """Load the query of each row, [R, DIMS]."""
    rows = Q + query[:, None] * query_head + node[:, None] * query_node
    return tl.load(rows + dims[None, :], mask=live[:, None] & (dims < DIM)[None, :], other=0.0)


@triton.jit
def _leave(PART, MAXIMA, SUMS, at, live, dims, m, total, acc, DIMS: tl.constexpr):
    """Store the running soft-max of a split's rows for `_join`; `at` numbers the rows."""
    tl.store(PART + at[:, None] * DIMS + dims[None, :], acc, mask=live[:, None])
    tl.store(MAXIMA + at, m, mask=live)
    tl.store(SUMS + at, total, mask=live)


@triton.jit
def _finish(OUT, at, live, dims, total, acc, DIM: tl.constexpr):
    """Store what rows see that were attended to whole; `at` numbers them in the output."""
    result = (acc / tl.where(live, total, 1.0)[:, None]).to(OUT.dtype.element_ty)
    places = OUT + at[:, None] * DIM + dims[None, :]
    tl.store(places, result, mask=live[:, None] & (dims < DIM)[None, :])


@triton.jit(do_not_specialize=["NODES", "WORDS"])
def _split(
    Q, K, V, BITS, DEPTHS, LENGTH, OUT, PART, MAXIMA, SUMS, NODES, WORDS,
    query_head, query_node, cache_head, cache_row,  # strides
    GROUP: tl.constexpr, SPLITS: tl.constexpr, SCALE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr, DIMS: tl.constexpr,
    FACTOR: tl.constexpr, WIDE: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Attend from one tile of rows of one key-value head to one split of prefix and tree.

    With one split the result goes to OUT, otherwise the running soft-max to PART, MAXIMA, SUMS.
    WINDOW 0: rows see everything; else DEPTHS holds the nodes' depths.
    """
    head = tl.program_id(1)
    split = tl.program_id(2)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    node = rows // GROUP
    query = head * GROUP + rows % GROUP  # the query head of each row
    live = rows < NODES * GROUP
    dims = tl.arange(0, DIMS)
    # Columns are cache entries: the prefix is 0 .. length, the tree length .. end.
    length = tl.load(LENGTH)
    end = length + NODES
    origin = 0
    nearest = 0  # the first position that each row sees
    if WINDOW:
        origin = tl.maximum(length - WINDOW + 1, 0) // COLUMNS * COLUMNS
        nearest = length + tl.load(DEPTHS + node, mask=live, other=0) - WINDOW + 1  # [R]
    chunk = tl.cdiv(tl.cdiv(end - origin, SPLITS), COLUMNS) * COLUMNS  # a split's, whole tiles
    first = origin + split * chunk
    last = tl.minimum(first + chunk, end)
    q = _queries(Q, query, node, live, dims, query_head, query_node, DIM).to(FACTOR)
    keys = K + head.to(tl.int64) * cache_head
    values = V + head.to(tl.int64) * cache_head
    m = tl.full([ROWS], float("-inf"), WIDE)
    total = tl.zeros([ROWS], WIDE)
    acc = tl.zeros([ROWS, DIMS], WIDE)
    plain = tl.maximum(first, tl.minimum(last, length // COLUMNS * COLUMNS))  # in the prefix
    for start in range(first, plain, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        visible = live[:, None]
        if WINDOW:
            visible = visible & (columns[None, :] >= nearest[:, None])
        m, total, acc = _tile(
            q, keys, values, visible, m, total, acc, columns, dims, cache_row, SCALE, DIM, FACTOR
        )
    # The few tiles that touch the tree. Prefetching them would not pay: num_stages=1.
    for start in tl.range(plain, last, COLUMNS, num_stages=1):
        wanted = start + tl.arange(0, COLUMNS)
        columns = tl.minimum(wanted, last - 1)  # never read an entry that was not written
        visible = _visible(
            BITS, DEPTHS, WORDS, node, live, wanted, columns, length, last, nearest, WINDOW
        )
        m, total, acc = _tile(
            q, keys, values, visible, m, total, acc, columns, dims, cache_row, SCALE, DIM, FACTOR
        )
    if SPLITS == 1:
        _finish(OUT, query * NODES + node, live, dims, total, acc, DIM)
    else:
        at = (split * tl.num_programs(1) + head) * NODES * GROUP + rows
        _leave(PART, MAXIMA, SUMS, at, live, dims, m, total, acc, DIMS)


@triton.jit(do_not_specialize=["NODES"])
def _join(
    OUT, PART, MAXIMA, SUMS, NODES, GROUP: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, DIM: tl.constexpr, DIMS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Join the splits of ROWS rows of one key-value head into the output.

    Each split left m, total and acc as in `_tile`; they are rescaled to a common maximum.
    """
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
        safe = tl.where(top == float("-inf"), 0.0, top)  # as in `_tile`
        shrink = tl.exp2(m - safe)  # of the splits joined so far
        shrink_other = tl.exp2(other - safe)  # of this one
        part = tl.load(PART + at[:, None] * DIMS + dims[None, :], mask=live[:, None], other=0.0)
        acc = acc * shrink[:, None] + part * shrink_other[:, None]
        total = total * shrink + tl.load(SUMS + at, mask=live, other=1.0) * shrink_other
        m = top
    out = (
        OUT + ((head * GROUP + rows % GROUP) * NODES + rows // GROUP)[:, None] * DIM + dims[None, :]
    )
    # A node sees itself, so the total of a live row is never 0.
    result = acc / tl.where(live, total, 1.0)[:, None]
    tl.store(out, result.to(OUT.dtype.element_ty), mask=live[:, None] & (dims < DIM)[None, :])


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bits: Tensor,
    length: Tensor,
    scale: float,
    window: int | None = None,
    depths: Tensor | None = None,
) -> Tensor:
    """Attend as `reference.attend` defines; returns `[H, N, D]`.

    query `[H, N, D]`; keys, values `[H_kv, C, D]`; bits `[N, W]`; depths int32 `[N]`.
    """
    if window is None or depths is None:
        window = 0
        depths = length  # not read
    heads, nodes, dim = query.shape
    kv_heads, capacity, _ = keys.shape
    group = heads // kv_heads
    dims = max(16, triton.next_power_of_2(dim))  # 16 is the least side of a matrix product
    most = 64 if query.dtype.itemsize == 2 else 16
    rows = min(most, max(16, triton.next_power_of_2(nodes * group)))
    tiles = triton.cdiv(nodes * group, rows)
    read = min(capacity, window + nodes) if window else capacity
    splits = _splits(read, tiles * kv_heads, query.device)
    out = query.new_empty(heads, nodes, dim)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    columns, stages = tile(query.dtype, rows, dims)
    partial = query.new_empty(
        splits if splits > 1 else 0, kv_heads, nodes * group, dims, dtype=wide
    )
    maxima, sums = query.new_empty(2, splits, kv_heads, nodes * group, dtype=wide)
    _split[tiles, kv_heads, splits](
        query, keys, values, bits, depths, length, out, partial, maxima, sums, nodes, bits.shape[1],
        query.stride(0), query.stride(1), keys.stride(0), keys.stride(1),
        GROUP=group, SPLITS=splits, SCALE=scale * LOG2E,
        ROWS=rows, COLUMNS=columns, DIM=dim, DIMS=dims,
        FACTOR=_factor(query.dtype), WIDE=TYPES[wide], WINDOW=window, num_stages=stages,
    )  # fmt: skip
    if splits > 1:
        _join[triton.cdiv(nodes * group, JOINED), kv_heads](
            out, partial, maxima, sums, nodes, GROUP=group, SPLITS=splits,
            ROWS=JOINED, DIM=dim, DIMS=dims, WIDE=TYPES[wide],
        )  # fmt: skip
    return out


def tile(dtype: torch.dtype, rows: int, dims: int) -> tuple[int, int]:
    """Return the columns of a tile and the number of tiles in flight (num_stages).

    Both are bounded by the shared memory of smaller cards.
    """
    if dtype.itemsize > 2:
        return 32, 2
    return 64, 3 if rows * dims <= 32 * 128 else 2


def _factor(dtype: torch.dtype) -> tl.dtype:
    """Return the type of a matrix product's factors; the interpreter has no 16-bit products."""
    return tl.float32 if interpreted() and dtype.itemsize == 2 else TYPES[dtype]


def _splits(capacity: int, programs: int, device: torch.device) -> int:
    """Return how many splits, a power of two, fill the device with parts worth a program each.

    `programs` run per split.
    """
    splits = max(1, capacity // MIN_SPLIT)
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        splits = min(splits, triton.cdiv(2 * processors, programs))
    return min(MAX_SPLITS, triton.next_power_of_2(splits))
