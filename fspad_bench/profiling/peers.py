"""Other implementations of tree attention, to time our kernel against.

Shapes: query `[H, N, D]`; keys and values `[K, L + N, D]`, K key-value heads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import FlexKernelOptions
from torch.nn.functional import scaled_dot_product_attention

from fspad_bench.core.tree import WORD

MASK_BLOCK = 128  # queries of a block of FlexAttention's mask
BLOCK = 64  # queries and columns of a tile that fits the shared memory of an H200


def masked(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attend `[H, N, D]` with a mask `[N, L + N]` as transformers does.

    With a mask it repeats keys and values for every query head of a group.
    """
    group = len(query) // len(keys)
    repeated_keys = keys.repeat_interleave(group, 0)
    repeated_values = values.repeat_interleave(group, 0)
    return scaled_dot_product_attention(
        query[None], repeated_keys[None], repeated_values[None], attn_mask=mask
    )[0]


def flex(
    query: Tensor, keys: Tensor, values: Tensor, bits: Tensor, length: Tensor
) -> Callable[[], Tensor]:
    """Compile FlexAttention, masked by the ancestor bits, for these shapes.

    A call of the result returns `[1, H, N, D]`.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(batch: Tensor, head: Tensor, node: Tensor, column: Tensor) -> Tensor:
        inside = (column - length[0]).clamp(0, len(bits) - 1)
        return (column < length[0]) | ((bits[node, inside // WORD] >> (inside % WORD)) & 1 == 1)

    # without a reset, compilation stops after a few shapes and eager code runs instead
    torch._dynamo.reset()
    block = create_block_mask(
        visible, None, None, query.shape[1], keys.shape[1], device=query.device
    )
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    group = len(query) // len(keys)
    return lambda: compiled(
        query[None],
        keys[None],
        values[None],
        block_mask=block,
        enable_gqa=group > 1,
        kernel_options=flex_options(query.shape[1], group),
    )


def flex_options(nodes: int, group: int) -> FlexKernelOptions:
    """Return the options with which FlexAttention compiles for so many nodes and heads of a group.

    For under 128 queries and a power of two heads it takes its decoding kernel, which has all of a
    group's queries in one block. A mask's blocks are of 128: with more queries than that nothing
    compiles (torch 2.11). The other kernel's own tiles for more than 64 nodes of 128 dimensions ask
    for 256 KiB of shared memory, where an H200 has 227.
    """
    if nodes * group <= MASK_BLOCK:
        return {}
    if nodes <= BLOCK:
        return {"FORCE_USE_FLEX_ATTENTION": True}
    return {"FORCE_USE_FLEX_ATTENTION": True, "BLOCK_M": BLOCK, "BLOCK_N": BLOCK}
