"""The attention that every decoder shares, as backends: one object that writes new entries and
attends over a cache.

- `prefill` is causal, `tree` follows ancestor bits. Each returns the attention of one forward,
  called layer by layer.
- The query heads that share a key-value head are folded into rows, so K and V are read once and
  never repeated, masked or not: a library's own path copies them per query group as soon as a mask
  is passed, which would charge tree verification for something vanilla does not pay.
- `TorchAttention` is the reference on any device. The CPU's compiled backend is in `cpu.attention`,
  the GPU's in `gpu.backend`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fspad_bench.core.tree import ancestor_bits, unpack_bits
from fspad_bench.engine.cache import KVCache

Attend = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, projections not yet rotated `[N, H + 2 H_kv, D]`, rope `[2, N, D]`) -> what each token
sees, `[N, H D]`.
"""


class HeadShape(NamedTuple):
    """The shape of a model's attention."""

    heads: int
    kv_heads: int
    dim: int
    scaling: float

    @property
    def groups(self) -> int:
        return self.heads // self.kv_heads


class Pending(NamedTuple):
    """Pending entries behind `prefix` committed ones.

    The ancestry of all R, of which the last N are new.
    """

    prefix: int
    ancestry: Sequence[int]
    new: int

    @property
    def start(self) -> int:
        """The slot of the first new entry."""
        return self.prefix + len(self.ancestry) - self.new

    def positions(self) -> list[int]:
        """Return the sequence positions of the new ones: as far behind the prefix as deep."""
        return [self.prefix + row.bit_count() - 1 for row in self.ancestry[-self.new :]]

    @property
    def bits(self) -> Tensor:
        """Ancestor bits of all R, `[R, W]` int64."""
        return ancestor_bits(self.ancestry)

    @property
    def visible(self) -> Tensor | None:
        """Which of the R entries each new one attends to, `[N, R]` bool.

        None where there is only one.
        """
        if len(self.ancestry) == 1:
            return None
        return unpack_bits(self.bits[-self.new :], len(self.ancestry))


class Attention(Protocol):
    """A backend: writes new tokens' entries to a cache, and attends over."""

    name: str

    def prefill(self, cache: KVCache, count: int) -> Attend:
        """Write `count` tokens from the first slot on.

        Each attends to itself and those before it.
        """

    def tree(self, cache: KVCache, pending: Pending) -> Attend:
        """Write the new pending tokens; each attends to the prefix and to its ancestors."""


class TorchAttention:
    """Scaled dot-product attention of torch, with a dense mask for trees."""

    name = "torch"

    def __init__(self, shape: HeadShape) -> None:
        self.shape = shape

    def prefill(self, cache: KVCache, count: int) -> Attend:
        return self._over(cache, 0, count, causal=count > 1)

    def tree(self, cache: KVCache, pending: Pending) -> Attend:
        device = cache.entries.device
        mask = additive_mask(pending, self.shape.groups, cache.entries.dtype, device)
        return self._over(cache, pending.start, pending.new, mask=mask)

    def _over(
        self,
        cache: KVCache,
        start: int,
        count: int,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Attend:
        end = start + count

        def attend(layer: int, projections: Tensor, rope: Tensor) -> Tensor:
            q, k, v = self.rotated(projections, rope)
            keys = cache.keys[layer]
            values = cache.values[layer]
            keys[:, start:end] = k
            values[:, start:end] = v
            seen = attention(
                q[None], keys[None, :, :end], values[None, :, :end], mask=mask, causal=causal
            )
            return seen[0].transpose(0, 1).flatten(1)

        return attend

    def rotated(self, projections: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split `[N, H + 2 H_kv, D]` into rotated queries `[H, N, D]`, rotated keys and values
        `[H_kv, N, D]`.
        """
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        qk, v = projections.transpose(0, 1).split([heads + kv_heads, kv_heads])
        q, k = rotate(qk, rope).split([heads, kv_heads])
        return q, k, v


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scaling: float | None = None,
) -> Tensor:
    """Attend: query `[B, H, N, D]`, key and value `[B, H_kv, L, D]` -> `[B, H, N, D]`.

    `mask [H / H_kv * N, L]` is added to the scores. `causal` is for N = L; without either, all is
    seen.
    """
    batch, heads, rows, dim = query.shape
    kv_heads = key.shape[1]
    if causal:
        if rows != key.shape[2]:
            raise ValueError(f"causal attention of {rows} queries over {key.shape[2]} keys")
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=heads != kv_heads
        )
    folded = query.reshape(batch, kv_heads, -1, dim)
    seen = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return seen.reshape(batch, heads, rows, dim)


def additive_mask(
    pending: Pending, groups: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """Return `[groups * N, prefix + R]`.

    0 where a new token attends, -inf elsewhere. None: it attends to all.
    """
    visible = pending.visible
    if visible is None:
        return None
    total = len(pending.ancestry)
    mask = torch.zeros(pending.new, pending.prefix + total, dtype=dtype)
    mask[:, pending.prefix :].masked_fill_(~visible, float("-inf"))
    return mask.repeat(groups, 1).to(device)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Apply rotary embedding to x `[H, N, D]`, halves paired: (x1, x2) -> (x1 cos - x2 sin, x2 cos
    + x1 sin).

    `rope [2, N, D]`: cosines, and sines with the sign of their half.
    """
    cos, sin = rope
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
