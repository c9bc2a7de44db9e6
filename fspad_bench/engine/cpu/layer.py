"""A draft's decoder layer as one compiled call (`layer.hpp`), with the bits of its parts.

A level of a draft has a few rows, and half a dozen calls of it take less time than what lies
between them. All that does not change from level to level is looked up once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from fspad_bench.engine.attention import HeadShape
from fspad_bench.engine.cpu.linear import Matrix
from fspad_bench.engine.cpu.native import HEAD, KINDS, PRODUCTS, ROWS, Native, pointer


class CompiledLayer:
    """x `[M, in]` and a residual `[N, d]` -> the residual with attention's output, and the MLP's.

    Products are in the order of their use: q, k and v, output, gate and up, down.
    """

    def __init__(
        self,
        functions: Native,
        products: Sequence[Matrix],
        norm: Tensor,
        shape: HeadShape,
        eps: float,
    ) -> None:
        self.function = functions.functions.fspad_layer
        self.shape = shape
        self.eps = eps
        q, _, _, _, down = products
        self.updates = down.out_features
        weights = [weight for product in products for weight in (product.packed, product.bias)]
        self.weights = [*weights, norm]  # keeps them alive: pointers do not
        stored = q.packed
        assert stored is not None
        self.kind = PRODUCTS[norm.dtype, stored.dtype]
        self.pointers = (ctypes.c_void_p * 11)(*map(pointer, self.weights))
        self.widths = (ctypes.c_long * 4)(
            q.in_features, len(norm), down.in_features, down.out_features
        )

    @staticmethod
    def serves(functions: Native, products: Sequence[Matrix]) -> bool:
        """Whether all products are packed, and alike, and the call is right on this machine."""
        types = {None if p.packed is None else p.packed.dtype for p in products}
        return len(types) == 1 and None not in types and has_bits_of_parts(functions)

    def fits(self, x: Tensor) -> bool:
        """Whether so few rows are computed here; those of a prompt are not."""
        return len(x) <= ROWS

    def __call__(
        self,
        x: Tensor,
        residual: Tensor,
        rope: Tensor,
        keys: Tensor,
        values: Tensor,
        start: int,
        visible: Tensor | None,
    ) -> Tensor:
        """Return the MLP's output `[N, parts d]`; the residual is overwritten.

        The other arguments are those of `Native.attend`: the last N rows of x attend. Raises
        RuntimeError past the last slot.
        """
        x = x.contiguous()
        visible = None if visible is None else visible.contiguous()
        rows = len(residual)
        end = start + len(x)
        slots = keys.shape[-2]
        if end > slots:
            raise RuntimeError(f"entries {start} to {end} of a cache of {slots}")
        heads, kv_heads, dim, scale, _ = self.shape
        angle = 0 if rope.shape[1] == 1 else rope.stride(1)
        tail = 0 if visible is None else visible.shape[1]
        numbers = (ctypes.c_long * 12)(
            rows, len(x), 0, 0, angle, heads, kv_heads, dim, slots, start, end, tail
        )
        cos = rope.data_ptr()
        sin = cos + rope.stride(0) * rope.element_size()
        update = x.new_empty(rows, self.updates)
        self.function(
            self.kind, x.data_ptr(), residual.data_ptr(), update.data_ptr(), self.pointers,
            self.widths, cos, sin, keys.data_ptr(), values.data_ptr(), pointer(visible), numbers,
            scale, self.eps, torch.get_num_threads(),
        )  # fmt: skip
        return update


def by_parts(
    functions: Native,
    products: Sequence[Matrix],
    norm: Tensor,
    shape: HeadShape,
    eps: float,
    x: Tensor,
    residual: Tensor,
    rope: Tensor,
    keys: Tensor,
    values: Tensor,
    start: int,
    visible: Tensor | None,
) -> Tensor:
    """Compute a layer in a call for each of its parts, as `CompiledLayer` does in one."""
    q, kv, out, gate_up, down = products
    queries = q(x[-len(residual) :]).unflatten(-1, (-1, shape.dim))
    entries = kv(x).unflatten(-1, (-1, shape.dim))
    seen = functions.attend(queries, entries, rope, keys, values, start, visible, shape.scaling)
    _, normed = functions.add_norm(residual, out(seen), norm, eps)
    return down(functions.gated(gate_up(normed)))


@cache
def has_bits_of_parts(functions: Native) -> bool:
    """Whether one call gives the bits of its parts here: the compiler is not ours."""
    return all(
        _agrees(functions, dtype, stored)
        for dtype in KINDS
        for stored in KINDS
        if (dtype, stored) in PRODUCTS
    )


@torch.inference_mode()
def _agrees(functions: Native, dtype: torch.dtype, stored: torch.dtype) -> bool:
    """Compare three rows among five, in a tree, behind 130 cached entries."""
    stream = torch.Generator().manual_seed(4)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream).to(stored).to(dtype) / 8

    shape = HeadShape(2, 1, HEAD, HEAD**-0.5)
    widths = [(2 * HEAD, 96), (2 * HEAD, 96), (32, 2 * HEAD), (128, 32), (64, 64)]
    products = [Matrix(some(*width)) for width in widths]
    norm = some(32)
    parts = norm, shape, 1e-5
    x = some(5, 96)
    rope = some(2, 5, HEAD)
    visible = torch.ones(3, 5).tril(2).bool()
    keys, values = some(2, 1, 140, HEAD)
    caches = keys.clone(), values.clone()
    residual = some(3, 32)
    copy = residual.clone()
    layer = CompiledLayer(functions, products, *parts)
    update = layer(x, residual, rope, keys, values, 130, visible)
    expected = by_parts(functions, products, *parts, x, copy, rope, *caches, 130, visible)
    ours = [update, residual, keys, values]
    return all(map(torch.equal, ours, [expected, copy, *caches]))
