"""What rounding leaves to compare with vanilla by, on a target as it runs.

- Where a row keeps its bits in any company, as on the compiled step (`together.keeps_bits`), every
  difference of a decoder in our loop is a mistake: tokens and cache are vanilla's to the bit.
- Elsewhere a precise target's cache lies within `CACHE_BOUND` of another forward's, and its tokens
  differ at the nearest of ties alone.
- What is left are low precisions in which a tree rounds otherwise than single tokens: near ties may
  go either way, and nothing here could tell them from a mistake.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fspad_bench.core.tree import Tree
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.engine.together import keeps_bits

CACHE_BOUND = {torch.float64: 1e-9, torch.float32: 1e-3}
ROUNDS_OTHERWISE = "rounds a tree otherwise than single tokens: see the other precisions"


def is_precise(target: TransformersTarget) -> bool:
    """Whether it computes in float32 or float64, where rounding decides hardly a token."""
    return target.dtype in CACHE_BOUND


def rounds_otherwise(target: TransformersTarget) -> bool:
    """Whether near ties may go either way, with nothing to tell them by."""
    return not (is_precise(target) or keeps_bits(target))


def cache_bound(target: TransformersTarget) -> float:
    """Return how far a right cache's entries may lie from those it is compared with: 0, vanilla's
    bits, where they are kept.

    Raises KeyError where a tree `rounds_otherwise`.
    """
    return 0.0 if keeps_bits(target) else CACHE_BOUND[target.dtype]


@torch.inference_mode()
def cache_error(target: TransformersTarget, prompt: Sequence[int], output: Sequence[int]) -> float:
    """Return the largest difference between the last session's entries and the right ones.

    These are vanilla's for the same tokens where bits are kept, else those of a fresh prefill.
    """
    last = target.last_session
    assert last is not None
    tokens = [*prompt, *output]
    length = min(last.length, len(tokens))  # entries accepted after a stop do not count
    if length < len(tokens) - 1:
        return float("inf")
    held = last.cache.first(length)
    prefilled = len(prompt) if keeps_bits(target) else length
    right = _entries(target, tokens[:length], prefilled)
    return float((held.double() - right.double()).abs().max())


def _entries(target: TransformersTarget, tokens: Sequence[int], prefilled: int) -> Tensor:
    """Return the entries of so many prefilled tokens and of the others, one at a time."""
    with target.session(len(tokens)) as session:
        session.prefill(tokens[:prefilled])
        for token in tokens[prefilled:]:
            session.score(Tree.root(token))
            session.commit([0])
        return session.cache.first(len(tokens))
