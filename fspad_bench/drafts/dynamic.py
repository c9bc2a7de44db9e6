"""EAGLE-2's dynamic tree (Li et al. 2024, arXiv 2406.16858), with the target's own noise where there is any.

Level by level the `top_k` most probable paths are expanded by their `top_k` next tokens; of all candidates those with
the highest cumulative log-probability make the tree, as many as its `size` says. Under sampling the target will choose
the argmax of its logits + T * G, with noise G that is known beforehand (Daliri et al. 2024, arXiv 2408.07978). So a
child's probability is that of softmax(z), z = draft logits + T * G at its position: how surely the draft's own
choice is the target's. Softmax of the logits alone would prune the very children that the noise favours. At T = 0
this is EAGLE-2's rule.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fspad_bench.decoding import Context
from fspad_bench.drafts.draft import Draft
from fspad_bench.drafts.network import DraftOutput
from fspad_bench.drafts.rows import lineage
from fspad_bench.drafts.size import Size
from fspad_bench.tree import Tree


def dynamic_tree(draft: Draft, context: Context, *, size: Size, budget: int, top_k: int, coupled: bool) -> Tree:
    """The tree below the last committed token, at most `budget` levels deep."""
    out = draft.absorb()
    tokens, scores = _children(draft, out, top_k, _noise(draft, context, 0, coupled), size, 0)
    levels = [(tokens[0], scores[0], torch.full_like(tokens[0], -1))]
    frontier = torch.arange(top_k, device=tokens.device)
    parents = torch.zeros_like(frontier)
    ancestors, first, known = None, 0, scores[0].tolist()
    while len(levels) < budget and size.grow(known, scores.flatten()[frontier].tolist(), len(levels)):
        chosen, best, _ = levels[-1]
        ancestors = lineage(ancestors, parents)
        level = len(levels)
        out = draft.expand(chosen[frontier], out.h_feature[parents], ancestors, level - 1)
        tokens, scores = _children(draft, out, top_k, _noise(draft, context, level, coupled), size, level)
        scores = scores + best[frontier][:, None]
        origin = (first + frontier)[:, None].expand_as(tokens)
        first += len(chosen)
        levels.append((tokens.flatten(), scores.flatten(), origin.flatten()))
        known += scores.flatten().tolist()
        frontier = scores.flatten().topk(top_k).indices
        parents = frontier // top_k
    return _prune(context.tokens[-1], levels, size)


def _noise(draft: Draft, context: Context, level: int, coupled: bool) -> Tensor | float:
    """T * G of the position that children at `level` stand at, over the draft vocabulary; 0 where not coupled."""
    sampler = context.sampler
    return sampler.temperature * sampler.noise(context.position + level, draft.vocabulary) if coupled else 0.0


def _children(
    draft: Draft, out: DraftOutput, top_k: int, noise: Tensor | float, size: Size, level: int
) -> tuple[Tensor, Tensor]:
    """The `top_k` likeliest tokens after each of N rows and their graded log-probabilities, `[N, K]` each."""
    best = (draft.logits(out) + noise).log_softmax(-1).topk(top_k, dim=-1)
    return draft.vocabulary[best.indices], size.grade(best.values, level)


def _prune(root: int, levels: list[tuple[Tensor, Tensor, Tensor]], size: Size) -> Tree:
    """The best candidates, as many as `size` keeps. Equal scores keep pool order, so no node outlives its parent."""
    tokens, scores, origins = (torch.cat(part) for part in zip(*levels, strict=True))
    order = scores.sort(descending=True, stable=True)
    kept = order.indices[: size.keep(order.values.tolist(), len(levels))].sort().values
    place = {node: i for i, node in enumerate(kept.tolist(), start=1)}
    parents = [place.get(origin, 0) for origin in origins[kept].tolist()]
    return Tree([root, *tokens[kept].tolist()], [-1, *parents])
