"""The attention that every decoder shares, as backends: one object that writes new entries and
attends over a cache.

- `prefill` is causal, `tree` follows ancestor bits. Each returns the attention of one forward,
  called layer by layer.
- A layer may see its last positions only (a sliding window). Their number counts positions, not
  slots: an ancestor in a tree lies as far back as it is less deep. What no new token sees is not
  read, so a step costs no more than its window.
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


Seen = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries `[1, H, N, D]`, keys and values of the cache so far `[1, H_kv, L, D]`) -> what
the queries see, `[1, H, N, D]`.
"""

PREFILL_ROWS = 256  # queries that a prefill through a window attends with at once


class HeadShape(NamedTuple):
    """The shape of a model's attention.

    `windows`: of how many last positions each layer's queries see the entries, their own among
    them; None where they see all. Empty: all layers see all.
    """

    heads: int
    kv_heads: int
    dim: int
    scaling: float
    windows: tuple[int | None, ...] = ()

    @property
    def groups(self) -> int:
        return self.heads // self.kv_heads

    def window(self, layer: int) -> int | None:
        """Return the window of a layer."""
        return self.windows[layer] if self.windows else None

    @property
    def kinds(self) -> set[int | None]:
        """The different windows of its layers."""
        return set(self.windows) or {None}


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
        return self.all_positions()[-self.new :]

    def all_positions(self) -> list[int]:
        """Return the sequence positions of all R."""
        return [self.prefix + row.bit_count() - 1 for row in self.ancestry]

    def first_seen(self, window: int | None) -> list[int] | None:
        """Return the first position that each new one sees.

        None where all of them see the sequence from its start.
        """
        if window is None:
            return None
        firsts = [max(0, position - window + 1) for position in self.positions()]
        return firsts if any(firsts) else None

    def first_slot(self, window: int | None) -> int:
        """Return the first slot that any of the new ones sees, at most the prefix's end."""
        firsts = self.first_seen(window)
        return 0 if firsts is None else min(self.prefix, *firsts)

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
        def seen(layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            window = self.shape.window(layer)
            return causal_attention(query, keys, values, window, self.shape.scaling)

        return self._over(cache, 0, count, seen)

    def tree(self, cache: KVCache, pending: Pending) -> Attend:
        device = cache.entries.device
        firsts = {window: pending.first_slot(window) for window in self.shape.kinds}
        masks = {
            window: additive_mask(
                pending, self.shape.groups, cache.entries.dtype, device, window, first
            )
            for window, first in firsts.items()
        }

        def seen(layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            window = self.shape.window(layer)
            first = firsts[window]
            return attention(
                query,
                keys[:, :, first:],
                values[:, :, first:],
                mask=masks[window],
                scaling=self.shape.scaling,
            )

        return self._over(cache, pending.start, pending.new, seen)

    def _over(self, cache: KVCache, start: int, count: int, seen: Seen) -> Attend:
        end = start + count

        def attend(layer: int, projections: Tensor, rope: Tensor) -> Tensor:
            q, k, v = self.rotated(projections, rope)
            keys = cache.keys[layer]
            values = cache.values[layer]
            keys[:, start:end] = k
            values[:, start:end] = v
            output = seen(layer, q[None], keys[None, :, :end], values[None, :, :end])
            return output[0].transpose(0, 1).flatten(1)

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


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None = None,
    scaling: float | None = None,
) -> Tensor:
    """Attend causally from N queries to N keys, each to the last `window` of those so far.

    Through a window the queries go in blocks, each over the keys that any of its own sees.
    """
    count = query.shape[2]
    if window is None or count <= window:
        return attention(query, key, value, causal=count > 1, scaling=scaling)
    groups = query.shape[1] // key.shape[1]
    parts = []
    for start in range(0, count, PREFILL_ROWS):
        end = min(count, start + PREFILL_ROWS)
        first = max(0, start - window + 1)
        mask = band_mask(range(start, end), range(first, end), window, query)
        parts.append(
            attention(
                query[:, :, start:end],
                key[:, :, first:end],
                value[:, :, first:end],
                mask=mask.repeat(groups, 1),
                scaling=scaling,
            )
        )
    return torch.cat(parts, dim=2)


def band_mask(queries: range, keys: range, window: int, like: Tensor) -> Tensor:
    """Return `[N, L]`, 0 where a position sees another through the window, -inf elsewhere."""
    at = torch.arange(queries.start, queries.stop, device=like.device)[:, None]
    columns = torch.arange(keys.start, keys.stop, device=like.device)
    hidden = (columns > at) | (columns <= at - window)
    return like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))


def additive_mask(
    pending: Pending,
    groups: int,
    dtype: torch.dtype,
    device: torch.device,
    window: int | None = None,
    first: int = 0,
) -> Tensor | None:
    """Return `[groups * N, prefix + R - first]` over the slots from `first` on.

    0 where a new token attends, -inf elsewhere. None: it attends to all.
    """
    visible = pending.visible
    seen_from = pending.first_seen(window)
    if visible is None and (seen_from is None or seen_from[0] <= first):
        return None
    total = pending.prefix - first + len(pending.ancestry)
    mask = torch.zeros(pending.new, total, dtype=dtype)
    if visible is not None:
        mask[:, pending.prefix - first :].masked_fill_(~visible, float("-inf"))
    if seen_from is not None:
        positions = torch.tensor([*range(first, pending.prefix), *pending.all_positions()])
        mask.masked_fill_(positions < torch.tensor(seen_from)[:, None], float("-inf"))
    return mask.repeat(groups, 1).to(device)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Apply rotary embedding to x `[H, N, D]`, halves paired: (x1, x2) -> (x1 cos - x2 sin, x2 cos
    + x1 sin).

    `rope [2, N, D]`: cosines, and sines with the sign of their half.
    """
    cos, sin = rope
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
