"""EAGLE-2's dynamic tree (Li et al. 2024, arXiv 2406.16858), with the target's own noise where there is any.

Level by level the `top_k` most probable paths are expanded by their `top_k` next tokens; of all candidates the most
probable make the tree, as many as its `size` says. Under sampling the target will choose the argmax of its logits +
T * G, with noise G that is known beforehand (Daliri et al. 2024, arXiv 2408.07978). So a child's probability is that of
softmax(z), z = draft logits + T * G at its position: how surely the draft's own choice is the target's. Softmax of the
logits alone would prune the very children that the noise favours. At T = 0 this is EAGLE-2's rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fspad_bench.core.loop import Context
from fspad_bench.core.tree import Tree
from fspad_bench.drafts.cache import lineage
from fspad_bench.drafts.draft import Draft
from fspad_bench.drafts.sizing.policy import Size


class Grown(NamedTuple):
    """A tree, how many levels were drafted for it, and how many of its drafted tokens will be chosen if their chances
    tell the truth."""

    tree: Tree
    levels: int = 0
    promised: float = 0.0


def dynamic_tree(
    draft: Draft, context: Context, *, size: Size, budget: int, top_k: int, coupled: bool
) -> Grown:
    """What grows below the last committed token, at most `budget` levels deep.

    Networks run on tensors; which candidates to expand and to keep is decided on the host, by lists of a few numbers.
    """
    # of all candidates, level by level; the root's children come from -1
    tokens = []
    chances = []
    origins = []
    out = draft.absorb()
    ancestors = None
    expanded = [-1]
    frontier = [1.0]
    for level in range(budget):
        logits = draft.logits(out)
        if coupled:
            logits += _noise(draft, context, level)
        best = logits.log_softmax(-1).topk(top_k, dim=-1)
        first = len(tokens)
        tokens += draft.vocabulary[best.indices].flatten().tolist()
        graded = size.grade(best.values.flatten().tolist(), level)
        paths = [frontier[number // top_k] * chance for number, chance in enumerate(graded)]
        chances += [chance if chance >= 0 else 0.0 for chance in paths]  # a draft may say NaN
        origins += [origin for origin in expanded for _ in range(top_k)]
        expanded = _leading(chances, range(first, len(chances)))[:top_k]
        frontier = [chances[node] for node in expanded]
        if level + 1 == budget or not size.grow(sorted(chances, reverse=True), frontier, level + 1):
            break
        device = out.h_feature.device
        rows = [(node - first) // top_k for node in expanded]
        parents = torch.tensor(rows, device=device)
        ancestors = lineage(ancestors, parents)
        chosen = torch.tensor([tokens[node] for node in expanded], device=device)
        out = draft.expand(chosen, out.h_feature[parents], ancestors, level)
    order = _leading(chances, range(len(chances)))
    kept = sorted(order[: size.keep([chances[node] for node in order], level + 1)])
    place = {node: number for number, node in enumerate([-1, *kept])}
    tree = Tree(
        [context.tokens[-1], *(tokens[node] for node in kept)],
        [-1, *(place[origins[node]] for node in kept)],
    )
    return Grown(tree, level + 1, sum(chances[node] for node in kept))


def _noise(draft: Draft, context: Context, level: int) -> Tensor:
    """T * G of the position that children at `level` stand at, over the draft vocabulary."""
    sampler = context.sampler
    return sampler.temperature * sampler.noise(context.position + level, draft.vocabulary)


def _leading(chances: Sequence[float], nodes: Iterable[int]) -> list[int]:
    """These candidates, best first. Equal chances keep their order, so no node outlives its parent."""
    return sorted(nodes, key=chances.__getitem__, reverse=True)
