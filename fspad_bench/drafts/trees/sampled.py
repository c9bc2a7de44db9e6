"""A tree of fixed shape whose children are drawn from the draft's distribution, for the rules that
need to know it.

The shape, which nodes have how many children, is settled beforehand: a sampled tree that is pruned
by what was drawn is no longer exact. A path of draft ranks r_1, r_2, ... costs sum(1 + r_i), as if
each rank halved the odds, and the cheapest `nodes - 1` paths make the shape (in the spirit of
Sequoia, Chen et al. 2024, arXiv 2402.12374).
"""

from __future__ import annotations

from functools import cache
from heapq import heappop, heappush

import torch
from torch import Tensor

from fspad_bench.core.protocols import Context
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Dice, without
from fspad_bench.drafts.draft import Draft
from fspad_bench.drafts.trees.levels import HeadLevels

Ranks = tuple[int, ...]
"""A node by the ranks of the draws that lead to it; the root is ()."""


def sampled_tree(draft: Draft, context: Context, *, nodes: int, depth: int, top_k: int) -> Tree:
    """Draw the tree below the last committed token, with its distributions `q` over the target's
    vocabulary.
    """
    assert context.sampler is not None
    shape = fixed_shape(nodes, depth, top_k)
    dice = context.sampler.dice(context.position, "draft")
    levels = HeadLevels(draft)
    tokens = [context.tokens[-1]]
    parents = [-1]
    places: dict[Ranks, int] = {(): 0}
    drawn_from: list[tuple[int, Tensor]] = []  # (node, the distribution of its children)
    logits = levels.absorb()
    level: list[Ranks] = [()]
    for reach in range(1, depth + 1):
        children: list[Ranks] = []
        for ranks, row in zip(level, logits, strict=True):
            q = context.sampler.distribution(row)
            drawn_from.append((places[ranks], q))
            wanted = [path for path in shape if len(path) == reach and path[:-1] == ranks]
            for path, token in zip(wanted, draw(q, len(wanted), dice), strict=False):
                places[path] = len(tokens)
                tokens.append(int(draft.ids[token]))
                parents.append(places[ranks])
                children.append(path)
        inner = [path for path in children if any(longer[:-1] == path for longer in shape)]
        if not inner:
            break
        chosen = [tokens[places[path]] for path in inner]
        logits = levels.expand(chosen, [level.index(path[:-1]) for path in inner])
        level = inner
    shape_of_q = len(tokens), draft.vocabulary.size
    all_q = torch.zeros(shape_of_q, dtype=torch.float64, device=draft.ids.device)
    for node, q in drawn_from:
        all_q[node, draft.ids] = q
    return Tree(tokens, parents, all_q)


def draw(q: Tensor, count: int, dice: Dice) -> list[int]:
    """Draw up to `count` different indices of q, each from what is left of it."""
    indices: list[int] = []
    while len(indices) < count and q.any():
        indices.append(dice.draw(q))
        q = without(q, indices[-1])
    return indices


@cache
def fixed_shape(nodes: int, depth: int, top_k: int) -> list[Ranks]:
    """Return the paths of ranks of a tree of at most `nodes` nodes, parents before children."""
    waiting: list[tuple[int, int, Ranks]] = [(1, 1, (0,))]
    cheapest: list[Ranks] = []
    while waiting and len(cheapest) < nodes - 1:
        cost, length, path = heappop(waiting)
        cheapest.append(path)
        if path[-1] + 1 < top_k:
            heappush(waiting, (cost + 1, length, (*path[:-1], path[-1] + 1)))
        if length < depth:
            heappush(waiting, (cost + 1, length + 1, (*path, 0)))
    return sorted(cheapest, key=lambda path: (len(path), path))
