"""The definition of every kernel, in torch, on any device. Triton's kernels are tested against it.

- Not fast: masks are dense, and the vocabulary is sorted.
- No device-to-host sync: shapes are fixed, and decisions stay tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fspad_bench.core.sampling import gumbel, hash32_rows
from fspad_bench.core.tree import WORD
from fspad_bench.engine.gpu.tensors import Nodes, SamplerTensors, Walk


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bits: Tensor,
    length: Tensor,
    scale: float,
    window: int | None = None,
    depths: Tensor | None = None,
) -> Tensor:
    """Attend from the N nodes of a tree to the prefix and the tree; returns `[H, N, D]`.

    query `[H, N, D]`; keys, values `[H_kv, C, D]`, in which the prefix has the entries
    `0 .. length` and node n the entry `length + n`; bits `[N, W]`. A node sees the whole prefix
    and the nodes whose bit it has. With a window it sees, of those, the entries of its last
    `window` positions: an entry of the prefix is at its own, a node at `length + depths[n]`, where
    depths are int32 `[N]`.
    """
    heads, nodes, dim = query.shape
    columns = torch.arange(keys.shape[1], device=query.device)  # [C]
    node = (columns - length).clamp(0, nodes - 1)  # [C], of the entries after the prefix
    bit = (bits[:, node // WORD] >> (node % WORD)) & 1  # [N, C]
    visible = (columns < length) | ((columns < length + nodes) & (bit == 1))
    if window is not None and depths is not None:
        positions = torch.where(columns < length, columns, length + depths[node])
        visible &= positions > (length + depths - window)[:, None]
    grouped = query.reshape(keys.shape[0], -1, nodes, dim)  # [H_kv, G, N, D]
    wide = torch.promote_types(query.dtype, torch.float32)
    products = torch.einsum("kgnd,kcd->kgnc", grouped.to(wide) * scale, keys.to(wide))
    weights = products.masked_fill(~visible, float("-inf")).softmax(-1)
    return (
        torch.einsum("kgnc,kcd->kgnd", weights, values.to(wide))
        .reshape(heads, nodes, dim)
        .to(query.dtype)
    )


def choose(logits: Tensor, depths: Tensor, position: Tensor, sampler: SamplerTensors) -> Tensor:
    """Return the target's token after every node, `[N]`.

    logits `[N, V]`; depths `[N]`; `position` is that of the token after the root.
    """
    if not sampler.sampled:
        return logits.argmax(-1)
    temperature, top_p = sampler.numbers
    scores = logits.float() / temperature  # [N, V]
    tokens = torch.arange(logits.shape[1], device=logits.device)
    if sampler.has_top_k or sampler.has_top_p:
        order = scores.sort(dim=-1, descending=True, stable=True)
        ranks = torch.empty_like(order.indices).scatter_(
            1, order.indices, tokens.expand_as(order.indices)
        )
        top_k = torch.where(sampler.words[2] > 0, sampler.words[2], logits.shape[1])
        mass = order.values.masked_fill(tokens >= top_k, float("-inf")).softmax(-1)
        above = mass.cumsum(-1) - mass  # the mass of the tokens ranked before each
        kept = torch.minimum(top_k, (above < top_p).sum(-1).clamp(min=1))  # [N]
        scores = scores.masked_fill(ranks >= kept[:, None], float("-inf"))
    noise = gumbel(hash32_rows(sampler.words[0], sampler.words[1], position + depths, tokens))
    return (scores + noise).argmax(-1)


def walk(nodes: Nodes, choice: Tensor) -> Walk:
    """Find the deepest node that agrees with the target, as all of its ancestors do.

    `choice` `[N]` is the target's token after every node. Siblings have different tokens, so the
    nodes that agree along with all their ancestors form one path.
    """
    agrees = (nodes.parents < 0) | (nodes.tokens == choice[nodes.parents.clamp(min=0)])
    agrees &= nodes.depths >= 0
    size = len(nodes.bits)
    columns = torch.arange(size, device=choice.device)
    related = lineage(nodes.bits)
    on_path = agrees & ~(related & ~agrees).any(-1)
    deepest = torch.where(on_path, nodes.depths, -1).argmax()
    accepted = related[deepest]  # [N]
    rank = accepted.cumsum(0) - 1
    path = torch.zeros_like(nodes.parents)
    # A node that is not accepted writes a 0 to the last place. That place is the path's only if
    # every node is accepted, and then no node writes such a 0.
    path.scatter_(
        0, torch.where(accepted, rank, size - 1), torch.where(accepted, columns, 0).to(path.dtype)
    )
    return Walk(path, accepted.sum().to(path.dtype), choice[deepest])


def lineage(bits: Tensor) -> Tensor:
    """Return whether each node descends from each other or is it, `[N, N]`, of bits `[N, W]`."""
    columns = torch.arange(len(bits), device=bits.device)
    return (bits[:, columns // WORD] >> (columns % WORD)) & 1 == 1


def compact(entries: Tensor, length: Tensor, walk: Walk) -> None:
    """Move the path's entries of a cache `[..., C, D]` to the places from `length` on, in place.

    Node n has the entry `length + n`. Entries after the path keep what they held.
    """
    size = len(walk.path)
    places = torch.arange(size, device=entries.device)
    source = length + torch.where(places < walk.count, walk.path, places)
    entries.index_copy_(-2, length + places, entries.index_select(-2, source))
