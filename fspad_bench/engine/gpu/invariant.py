"""Tree attention and products on a GPU in which a row gets the same bits in any company.

`attention` splits and tiles by the size of the tree, and sums a tree's entries in the order of its
nodes; a library may choose a product's algorithm by the number of rows. Here nothing that decides
an order of summation depends on either:

- A launch has tiles of one size, and more of them for more rows. Its constants are those of the
  model and the cache, so one compiled kernel serves every tree.
- A node attends to the keys of its path, the prefix and then its ancestors by depth, in tiles and
  splits that begin at fixed positions of that path: the same whether the path was committed one
  token at a time or is pending in a tree, and among any siblings. A tile that reaches into the tree
  is gathered and computed for each of its nodes in turn; a split without keys adds nothing.
- A product sums over its inputs in one order, in one program for each tile of outputs.

This costs speed, which was not measured: keys and values are read once for each 16 rows
rather than once for up to 64, and a product's weight is not split along its inputs.

Names are those of `attention`. A position counts along a row's path.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fspad_bench.engine.gpu.attention import (
    LOG2E,
    TYPES,
    _factor,
    _join,
    _leave,
    _queries,
    _tile,
)

ROWS = 16  # the least side of a matrix product
CHUNK = 256  # positions of a split
MOST_NODES = 128  # of a tree, as a session has them
BLOCK = 32  # outputs of one program of a product


@triton.jit
def _depths(BITS, WORDS, NODES, node, live, others):
    """Return how many nodes each row's path has in the tree, [R]."""
    words = tl.load(  # [R, WIDTH]
        BITS + node[:, None] * WORDS + (others // 64)[None, :],
        mask=live[:, None] & (others < NODES)[None, :], other=0,
    )  # fmt: skip
    return tl.sum(((words >> (others % 64).to(tl.int64)[None, :]) & 1).to(tl.int32), 1)


@triton.jit
def _ancestors(BITS, WORDS, NODES, member, others, depths):
    """Return the node at each of these depths on a node's path, [B]; 0 past the path's end."""
    word = tl.load(BITS + member * WORDS + others // 64, mask=others < NODES, other=0)  # [WIDTH]
    own = ((word >> (others % 64).to(tl.int64)) & 1).to(tl.int32)
    depth = tl.cumsum(own, 0) - 1
    sought = (own == 1)[None, :] & (depth[None, :] == depths[:, None])
    return tl.sum(tl.where(sought, others[None, :], 0), 1)


@triton.jit(do_not_specialize=["NODES", "WORDS"])
def _path_split(
    Q, K, V, BITS, LENGTH, PART, MAXIMA, SUMS, NODES, WORDS,
    query_head, query_node, cache_head, cache_row,  # strides
    GROUP: tl.constexpr, SCALE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, DIMS: tl.constexpr,
    FACTOR: tl.constexpr, WIDE: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Attend from one tile of rows of one key-value head to one split of each row's path.

    WIDTH is at least NODES. There is one loop, so that a tile of the prefix and a tile of the tree
    are computed by the same instructions.
    """
    head = tl.program_id(1)
    split = tl.program_id(2)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    node = rows // GROUP
    query = head * GROUP + rows % GROUP
    live = rows < NODES * GROUP
    dims = tl.arange(0, DIMS)
    # the nodes that the tile has rows of: each has its own keys in the tree
    foremost = tl.program_id(0) * ROWS // GROUP
    members = tl.minimum(((tl.program_id(0) + 1) * ROWS - 1) // GROUP + 1, NODES) - foremost
    others = tl.arange(0, WIDTH)
    length = tl.load(LENGTH)
    ends = length + _depths(BITS, WORDS, NODES, node, live, others)  # [R], of the paths
    nearest = ends * 0  # the first position that each row sees
    first = split * CHUNK
    if WINDOW:
        nearest = tl.maximum(ends - WINDOW, 0)
        first = tl.maximum(first, tl.maximum(length - WINDOW + 1, 0) // COLUMNS * COLUMNS)
    last = tl.minimum((split + 1) * CHUNK, tl.max(ends, 0))
    shared = tl.maximum(first, tl.minimum(last, length // COLUMNS * COLUMNS))
    plain = (shared - first) // COLUMNS  # tiles that lie whole in the prefix
    gathered = tl.maximum(tl.cdiv(last - shared, COLUMNS), 0) * members
    q = _queries(Q, query, node, live, dims, query_head, query_node, DIM).to(FACTOR)
    keys = K + head.to(tl.int64) * cache_head
    values = V + head.to(tl.int64) * cache_head
    m = tl.full([ROWS], float("-inf"), WIDE)
    total = tl.zeros([ROWS], WIDE)
    acc = tl.zeros([ROWS, DIMS], WIDE)
    for step in tl.range(0, plain + gathered, num_stages=1):
        turn = tl.maximum(step - plain, 0)
        member = foremost + turn % members
        start = tl.where(step < plain, first + step * COLUMNS, shared + turn // members * COLUMNS)
        positions = start + tl.arange(0, COLUMNS)
        ancestor = _ancestors(BITS, WORDS, NODES, member, others, positions - length)
        slots = tl.where(positions < length, positions, length + ancestor)
        mine = live & ((step < plain) | (node == member))
        visible = mine[:, None] & (positions[None, :] < ends[:, None])
        visible = visible & (positions[None, :] >= nearest[:, None])
        top, sums, sought_values = _tile(
            q, keys, values, visible, m, total, acc, slots, dims, cache_row, SCALE, DIM, FACTOR
        )
        m = tl.where(mine, top, m)
        total = tl.where(mine, sums, total)
        acc = tl.where(mine[:, None], sought_values, acc)
    at = (split * tl.num_programs(1) + head) * NODES * GROUP + rows
    _leave(PART, MAXIMA, SUMS, at, live, dims, m, total, acc, DIMS)


@triton.jit(do_not_specialize=["COUNT"])
def _product(
    X, W, BIAS, OUT, COUNT, OUTS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, FACTOR: tl.constexpr, WIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Multiply one tile of rows [COUNT, WIDTH] with one block of a weight [OUTS, WIDTH]."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    outs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = rows < COUNT
    real = outs < OUTS
    acc = tl.zeros([ROWS, BLOCK], WIDE)
    for start in range(0, WIDTH, DEPTH):
        inputs = start + tl.arange(0, DEPTH)
        inside = inputs < WIDTH
        x = tl.load(
            X + rows[:, None] * WIDTH + inputs[None, :],
            mask=live[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        w = tl.load(  # [DEPTH, BLOCK]
            W + outs[None, :].to(tl.int64) * WIDTH + inputs[:, None],
            mask=real[None, :] & inside[:, None], other=0.0,
        )  # fmt: skip
        acc += tl.dot(x.to(FACTOR), w.to(FACTOR), input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(BIAS + outs, mask=real, other=0.0).to(WIDE)[None, :]
    out = OUT + rows[:, None].to(tl.int64) * OUTS + outs[None, :]
    tl.store(out, acc.to(OUT.dtype.element_ty), mask=live[:, None] & real[None, :])


class Launch(NamedTuple):
    """The launch of a kernel: `grid` and the constants that it is compiled with."""

    grid: tuple[int, ...]
    constants: dict[str, Any]


def attention_launch(
    capacity: int, nodes: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> Launch:
    """Return the launch of `_path_split`; the number of nodes decides how many tiles there are."""
    group = heads // kv_heads
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    constants: dict[str, Any] = {
        "GROUP": group,
        "ROWS": ROWS,
        "COLUMNS": 64 if dtype.itemsize == 2 else 32,
        "CHUNK": CHUNK,
        "WIDTH": max(MOST_NODES, triton.next_power_of_2(nodes)),
        "DIM": dim,
        "DIMS": max(16, triton.next_power_of_2(dim)),
        "FACTOR": _factor(dtype),
        "WIDE": TYPES[wide],
    }
    splits = triton.next_power_of_2(triton.cdiv(capacity, CHUNK))
    return Launch((triton.cdiv(nodes * group, ROWS), kv_heads, splits), constants)


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

    A node's depth is the number of its ancestors: `depths` are not read.
    """
    heads, nodes, dim = query.shape
    kv_heads, capacity, _ = keys.shape
    grid, constants = attention_launch(capacity, nodes, heads, kv_heads, dim, query.dtype)
    tiles, _, splits = grid
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    rows = nodes * heads // kv_heads
    partial = query.new_empty(splits, kv_heads, rows, constants["DIMS"], dtype=wide)
    maxima, sums = query.new_empty(2, splits, kv_heads, rows, dtype=wide)
    out = query.new_empty(heads, nodes, dim)
    _path_split[grid](
        query, keys, values, bits, length, partial, maxima, sums, nodes, bits.shape[1],
        query.stride(0), query.stride(1), keys.stride(0), keys.stride(1),
        SCALE=scale * LOG2E, WINDOW=window or 0, **constants,
    )  # fmt: skip
    shared = {name: constants[name] for name in ("GROUP", "ROWS", "DIM", "DIMS", "WIDE")}
    _join[tiles, kv_heads](out, partial, maxima, sums, nodes, SPLITS=splits, **shared)
    return out


def product_launch(rows: int, outs: int, width: int, dtype: torch.dtype) -> Launch:
    """Return the launch of `_product`; the number of rows decides how many tiles there are."""
    constants: dict[str, Any] = {
        "OUTS": outs,
        "WIDTH": width,
        "ROWS": ROWS,
        "BLOCK": BLOCK,
        "DEPTH": 128 if dtype.itemsize == 2 else 32,
        "FACTOR": _factor(dtype),
        "WIDE": TYPES[torch.float64 if dtype == torch.float64 else torch.float32],
    }
    return Launch((triton.cdiv(rows, ROWS), triton.cdiv(outs, BLOCK)), constants)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b `[..., out]` for x `[..., in]` of few rows and a weight `[out, in]`."""
    outs, width = weight.shape
    rows = x.reshape(-1, width).contiguous()
    out = x.new_empty(*x.shape[:-1], outs)
    grid, constants = product_launch(len(rows), outs, width, x.dtype)
    _product[grid](
        rows, weight, out if bias is None else bias, out, len(rows),
        HAS_BIAS=bias is not None, **constants,
    )  # fmt: skip
    return out
