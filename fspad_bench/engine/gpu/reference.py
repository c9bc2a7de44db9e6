"""What each kernel computes, in torch: the definition that the Triton ones are held to, on any device.

Nothing here is fast: masks are dense, a vocabulary is sorted. Nothing here waits for the device either, so shapes are
fixed and what a kernel decides stays a tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fspad_bench.core.sampling import gumbel, hash32_rows
from fspad_bench.core.tree import WORD
from fspad_bench.engine.gpu.tensors import Law, Nodes, Walk


def attend(
    query: Tensor, keys: Tensor, values: Tensor, bits: Tensor, length: Tensor, scale: float
) -> Tensor:
    """query `[H, N, D]` at the rows `length ..` of keys and values `[H_kv, C, D]`, bits `[N, W]` -> `[H, N, D]`.

    A node sees the `length` rows of the prefix and, of the N rows behind them, those whose bit it has.
    """
    heads, nodes, dim = query.shape
    columns = torch.arange(keys.shape[1], device=query.device)
    inside = (columns - length).clamp(0, nodes - 1)
    bit = (bits[:, inside // WORD] >> (inside % WORD)) & 1
    seen = (columns < length) | ((columns < length + nodes) & (bit == 1))
    folded = query.reshape(keys.shape[0], -1, nodes, dim)
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = torch.einsum("kgnd,kcd->kgnc", folded.to(wide) * scale, keys.to(wide))
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (
        torch.einsum("kgnc,kcd->kgnd", weights, values.to(wide))
        .reshape(heads, nodes, dim)
        .to(query.dtype)
    )


def choose(logits: Tensor, depths: Tensor, position: Tensor, law: Law) -> Tensor:
    """The target's token after every node, `[N]`: logits `[N, V]`, depths `[N]`; `position` follows the root's."""
    if not law.sampled:
        return logits.argmax(-1)
    temperature, top_p = law.numbers
    scores = logits.float() / temperature
    tokens = torch.arange(logits.shape[1], device=logits.device)
    if law.few or law.nucleus:
        order = scores.sort(dim=-1, descending=True, stable=True)
        ranks = torch.empty_like(order.indices).scatter_(
            1, order.indices, tokens.expand_as(order.indices)
        )
        few = torch.where(law.words[2] > 0, law.words[2], logits.shape[1])
        mass = order.values.masked_fill(tokens >= few, float("-inf")).softmax(-1)
        above = mass.cumsum(-1) - mass
        kept = torch.minimum(few, (above < top_p).sum(-1).clamp(min=1))
        scores = scores.masked_fill(ranks >= kept[:, None], float("-inf"))
    noise = gumbel(hash32_rows(law.words[0], law.words[1], position + depths, tokens))
    return (scores + noise).argmax(-1)


def walk(nodes: Nodes, choice: Tensor) -> Walk:
    """From the root down where a child agrees: the deepest node that agrees with all its ancestors.

    Siblings differ, so the nodes that agree all the way form one path.
    """
    agrees = (nodes.parents < 0) | (nodes.tokens == choice[nodes.parents.clamp(min=0)])
    agrees &= nodes.depths >= 0
    size = len(nodes.bits)
    columns = torch.arange(size, device=choice.device)
    lineage = (nodes.bits[:, columns // WORD] >> (columns % WORD)) & 1 == 1
    whole = agrees & ~(lineage & ~agrees).any(-1)
    best = torch.where(whole, nodes.depths, -1).argmax()
    on = lineage[best]
    rank = on.cumsum(0) - 1
    path = torch.zeros_like(nodes.parents)
    path.scatter_(0, torch.where(on, rank, size - 1), torch.where(on, columns, 0).to(path.dtype))
    return Walk(path, on.sum().to(path.dtype), choice[best])


def compact(rows: Tensor, length: Tensor, found: Walk) -> None:
    """Of the rows from `length` on of `[..., C, D]` keep those of the path as the next ones, in place."""
    size = len(found.path)
    kept = torch.arange(size, device=rows.device)
    source = length + torch.where(kept < found.count, found.path, kept)
    rows.index_copy_(-2, length + kept, rows.index_select(-2, source))
