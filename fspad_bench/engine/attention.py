"""The attention that every decoder shares, for one row and for a tree of them.

transformers looks attention up by name; ours is `fspad_tree`. The query heads that share a key-value head are folded
into rows, so K and V are read once and never repeated, masked or not: the library's own path copies them per query
group as soon as a mask is passed, which would charge tree verification for something vanilla does not pay.
The tree's mask travels as the forward keyword `tree_mask`; without one, several rows are a causal prefill.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend
from transformers import AttentionInterface

from fspad_bench.core.tree import Tree

NAME = "fspad_tree"


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    tree_mask: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """The function that transformers calls; its output is `[B, N, H, D]`."""
    return attend_tree(query, key, value, tree_mask, scaling).transpose(1, 2), None


def attend_tree(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None
) -> Tensor:
    """query `[B, H, N, D]`, key and value `[B, H_kv, L, D]`, mask `[H / H_kv * N, L]` or None -> `[B, H, N, D]`."""
    batch, heads, rows, dim = query.shape
    kv_heads = key.shape[1]
    if mask is None and rows > 1:
        return attend(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=heads != kv_heads
        )
    folded = query.reshape(batch, kv_heads, -1, dim)
    return attend(folded, key, value, attn_mask=mask, scale=scaling).reshape(
        batch, heads, rows, dim
    )


def mask_of(
    tree: Tree, prefix: int, groups: int, *, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """What is added to the scores, `[groups * N, prefix + N]`: 0 where a node sees a row, -inf elsewhere.

    A single node sees everything, and needs no mask.
    """
    if len(tree) == 1:
        return None
    mask = torch.zeros(len(tree), prefix + len(tree), dtype=dtype)
    mask[:, prefix:].masked_fill_(~tree.visible(), float("-inf"))
    return mask.repeat(groups, 1).to(device)


AttentionInterface.register(NAME, tree_attention)
