"""Device functions that read a node's logits: scores, sortable integers, shares, noise.

The noise is that of `core.sampling`, computed where it is added. It depends only on the key, the
absolute position and the token, so all nodes of one position receive the same noise.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _mix(x):
    """The finaliser of `core.sampling`'s hash, on uint32."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def noise(first, second, position, token) -> tl.tensor:
    """Return `sampling.gumbel(sampling.hash32(...))` for a block of tokens.

    `first` and `second` are the halves of the key.
    """
    row = _mix((position + first).to(tl.uint32, bitcast=True))
    again = _mix(row ^ second.to(tl.uint32, bitcast=True))
    h = _mix(_mix(token.to(tl.uint32) ^ row) + again)
    # w = (h + 0.5) * 2^-32 in two halves: float32 does not hold a uint32
    high = (h >> 16).to(tl.float32) * (1.0 / 65536)
    low = ((h & 0xFFFF).to(tl.float32) + 0.5) * (1.0 / 4294967296)
    w = tl.minimum(high + low, 1.0 - 1.0 / 16777216)
    # -log1p(-w) = -log(u) * w / (1 - u) for u = 1 - w as rounded (Kahan); w itself where u is 1
    u = 1.0 - w
    less = 1.0 - u
    exponential = tl.where(less == 0, w, -tl.log(u) * (w / tl.where(less == 0, 1.0, less)))
    return -tl.log(exponential)


@triton.jit
def order_of(score) -> tl.tensor:
    """Map float32 scores to uint32 integers of the same order."""
    bits = (score + 0.0).to(tl.uint32, bitcast=True)  # + 0.0 makes -0.0 equal to 0.0
    return tl.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def scores_of(logits, tokens, V: tl.constexpr, temperature) -> tl.tensor:
    """Load a block of float32 scores; -inf beyond the vocabulary."""
    return (
        tl.load(logits + tokens, mask=tokens < V, other=float("-inf")).to(tl.float32) / temperature
    )


@triton.jit
def share_of(scores, top) -> tl.tensor:
    """Return exp(score - top), which is 1 at the top even if both overflowed to infinity."""
    return tl.where(scores == top, 1.0, tl.exp(scores - top))


def pair(like: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    """Allocate a float32 and an int32 tensor of one shape."""
    return like.new_empty(shape, dtype=torch.float32), like.new_empty(shape, dtype=torch.int32)
