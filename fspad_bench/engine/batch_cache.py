"""KV cache and forwards of a batch of sequences, for `batch`.

- The sequences at work occupy the first slots; a forward computes no product for an empty slot.
- The cache is as wide as its longest sequence, rounded up to `WIDEN`: the keys and values of a step
  are then one block of memory, which a batched product reads where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fspad_bench.engine.attention import Attend, TorchAttention
from fspad_bench.engine.forward import FusedForward
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.util.errors import BenchError

WIDEN = 64  # columns by which a cache grows; it shrinks when twice as many are unused


AttendRotated = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, query `[H, N, D]`, new keys and values `[H_kv, N, D]`) -> what each row sees, `[H, N,
D]`.
"""


class BatchCache:
    """The KV cache of up to `slots` sequences, and forwards over it.

    Each layer's keys and values are `[slots, H_kv, width, D]`.
    """

    def __init__(self, target: TransformersTarget, slots: int) -> None:
        if target.fused is None:
            raise BenchError(
                f"{target.name} has no fused forward",
                "a plain Llama, Mistral, Qwen or Gemma 3 on one device is needed here",
            )
        self.target = target
        self.fused: FusedForward = target.fused
        self.attention = TorchAttention(target.heads)
        self.shape = target.heads
        self.width = WIDEN
        self.keys = self._empty_layers(slots)
        self.values = self._empty_layers(slots)

    def _empty_layers(self, slots: int) -> list[Tensor]:
        shape = (slots, self.shape.kv_heads, self.width, self.shape.dim)
        # zeros, because a masked entry is weighted by 0, and 0 times an uninitialised NaN is NaN
        return [
            torch.zeros(shape, dtype=self.target.dtype, device=self.target.device)
            for _ in self.fused.layers
        ]

    def prefill(self, first: int, prompts: Sequence[list[int]]) -> Tensor:
        """Fill the slots from `first` on; return the logits after each prompt, `[R, V]`.

        The common prefix of all prompts is run once and copied.
        """
        shared = min(common_prefix(prompts), min(map(len, prompts)) - 1)
        if shared:
            self._fill(first, [prompts[0][:shared]], 0)
            for cache in (*self.keys, *self.values):
                cache[first + 1 : first + len(prompts), :, :shared] = cache[first, :, :shared]
        features = self._fill(first, [prompt[shared:] for prompt in prompts], shared)
        last = self._tensor([len(prompt) - shared - 1 for prompt in prompts])
        return self.target.logits(features[torch.arange(len(prompts), device=last.device), last])

    def _fill(self, first: int, parts: Sequence[list[int]], start: int) -> Tensor:
        """Run one part per slot, at positions from `start` on.

        Return the features `[R, L, d]`, padded on the right.
        """
        count = len(parts)
        width = max(map(len, parts))
        end = start + width
        self._set_width(end, shrink=False)
        padded = [part + [0] * (width - len(part)) for part in parts]
        ids = self._tensor([token for part in padded for token in part])
        rope = self.fused.rope.of(range(start, end)).repeat(1, count, 1)
        masks = {window: self._causal_mask(start, end, window) for window in self.shape.kinds}

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (
                x.unflatten(1, (count, width)).transpose(0, 1) for x in (query, key, value)
            )
            keys = self.keys[layer][first : first + count, :, :end]
            values = self.values[layer][first : first + count, :, :end]
            keys[:, :, start:] = key
            values[:, :, start:] = value
            mask = masks[self.shape.window(layer)]
            context = scaled_dot_product_attention(
                query,
                keys,
                values,
                attn_mask=mask,
                is_causal=mask is None,
                scale=self.shape.scaling,
                enable_gqa=self.shape.groups > 1,
            )
            return context.transpose(0, 1).flatten(1, 2)

        features, _ = self.fused(ids, rope, self._rotating(attend))
        return features.unflatten(0, (count, width))

    def step(self, tokens: list[int], positions: list[int]) -> Tensor:
        """Append one token, at its position, to each of the first slots.

        Return the logits after it, `[R, V]`.
        """
        count = len(tokens)
        end = max(positions) + 1
        self._set_width(end, shrink=True)
        slots = torch.arange(count, device=self.target.device)
        at = self._tensor(positions)
        masks = {window: self._length_mask(at, window) for window in self.shape.kinds}
        scale = self.shape.scaling

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys = self.keys[layer][:count]
            values = self.values[layer][:count]
            keys[slots, :, at] = key.transpose(0, 1)
            values[slots, :, at] = value.transpose(0, 1)
            query = query.unflatten(0, (self.shape.kv_heads, -1)).permute(2, 0, 1, 3)
            mask = masks[self.shape.window(layer)]
            scores = (query @ keys.transpose(-1, -2)).float() * scale + mask
            # two products: on a CPU a quarter of the fused kernel's time
            context = scores.softmax(-1).to(values.dtype) @ values
            return context.permute(1, 2, 0, 3).flatten(0, 1)

        rope = self.fused.rope.below(end)[:, at]
        features, _ = self.fused(self._tensor(tokens), rope, self._rotating(attend))
        return self.target.logits(features)

    def _rotating(self, attend: AttendRotated) -> Attend:
        """Return the attention of a forward from one that takes rotated queries and keys."""

        def rotate_and_attend(layer: int, projections: Tensor, rope: Tensor) -> Tensor:
            query, key, value = self.attention.rotated(projections, rope)
            return attend(layer, query, key, value).transpose(0, 1).flatten(1)

        return rotate_and_attend

    def _causal_mask(self, start: int, end: int, window: int | None) -> Tensor | None:
        """Return which of the entries before `end` those from `start` on see, `[N, end]` bool.

        None where they are causal from the first entry on, which needs no mask.
        """
        if not start and (window is None or end <= window):
            return None
        at = torch.arange(start, end, device=self.target.device)[:, None]
        columns = torch.arange(end, device=self.target.device)
        seen = columns <= at
        return seen if window is None else seen & (columns > at - window)

    def _length_mask(self, positions: Tensor, window: int | None) -> Tensor:
        """Return the additive mask `[R, 1, 1, width]` that hides entries after each position, and
        those before its window.
        """
        columns = torch.arange(self.width, device=positions.device)
        hidden = columns > positions[:, None]
        if window is not None:
            hidden |= columns <= positions[:, None] - window
        mask = torch.zeros(len(positions), 1, 1, self.width, device=positions.device)
        return mask.masked_fill_(hidden[:, None, None], float("-inf"))

    def move(self, source: int, destination: int, length: int) -> None:
        """Copy the first `length` entries of one slot into another."""
        for cache in (*self.keys, *self.values):
            cache[destination, :, :length] = cache[source, :, :length]

    def _set_width(self, end: int, *, shrink: bool) -> None:
        """Make room for `end` columns, layer by layer; with `shrink` free unused columns."""
        width = -(-end // WIDEN) * WIDEN
        if width <= self.width and not (shrink and width <= self.width - 2 * WIDEN):
            return
        kept = min(width, self.width)
        for layers in (self.keys, self.values):
            for layer, old in enumerate(layers):
                layers[layer] = old.new_zeros(*old.shape[:2], width, old.shape[3])
                layers[layer][:, :, :kept] = old[:, :, :kept]
        self.width = width

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self.target.device)


def common_prefix(sequences: Sequence[list[int]]) -> int:
    """Return the length of the longest prefix that all sequences share."""
    # in lexicographic order the first and the last sequence differ the earliest
    low = min(sequences)
    high = max(sequences)
    for length, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            return length
    return min(len(low), len(high))
