"""What the kernels of verification read a row of logits as: scores, integers of the same order, shares, and noise.

The noise is that of `sampling`, computed where it is added: it depends on the key, the absolute position and the token
alone, so every node at a position hears the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _mix(x):
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def noise(first, second, position, token) -> tl.tensor:
    """`sampling.gumbel(sampling.hash32(...))`; log1p by way of log, exact where 1 - w rounds (Kahan)."""
    row = _mix((position + first).to(tl.uint32, bitcast=True))
    again = _mix(row ^ second.to(tl.uint32, bitcast=True))
    h = _mix(_mix(token.to(tl.uint32) ^ row) + again)
    high = (h >> 16).to(tl.float32) * (1.0 / 65536)
    low = ((h & 0xFFFF).to(tl.float32) + 0.5) * (1.0 / 4294967296)
    w = tl.minimum(high + low, 1.0 - 1.0 / 16777216)
    u = 1.0 - w
    less = 1.0 - u
    exponential = tl.where(less == 0, w, -tl.log(u) * (w / tl.where(less == 0, 1.0, less)))
    return -tl.log(exponential)


@triton.jit
def order_of(score) -> tl.tensor:
    """A float32 as the uint32 of the same order."""
    bits = (score + 0.0).to(tl.uint32, bitcast=True)  # the two zeros are one
    return tl.where(bits >> 31 == 1, ~bits, bits | 0x80000000)


@triton.jit
def scores_of(logits, tokens, V: tl.constexpr, temperature) -> tl.tensor:
    """float32 scores of a row's tokens; behind its end -inf."""
    return (
        tl.load(logits + tokens, mask=tokens < V, other=float("-inf")).to(tl.float32) / temperature
    )


@triton.jit
def share_of(scores, top) -> tl.tensor:
    """exp(score - top), also where both overflowed."""
    return tl.where(scores == top, 1.0, tl.exp(scores - top))


def pair(like: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    """Room for as many float32 and as many int32."""
    return like.new_empty(shape, dtype=torch.float32), like.new_empty(shape, dtype=torch.int32)
