"""A tree of fixed shape whose children are drawn from the draft's law, for the rules that need to know it.

Which nodes have how many children is settled beforehand: a sampled tree that is pruned by what was drawn is no
longer exact. A path of draft ranks r_1, r_2, ... costs sum(1 + r_i), as if each rank halved the odds, and the
cheapest `nodes - 1` paths make the shape (in the spirit of Sequoia, Chen et al. 2024, arXiv 2402.12374).
"""

from __future__ import annotations

from functools import cache
from heapq import heappop, heappush

import torch
from torch import Tensor

from fspad_bench.core.loop import Context
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import without
from fspad_bench.drafts.cache import lineage
from fspad_bench.drafts.draft import Draft

Ranks = tuple[int, ...]


def sampled_tree(draft: Draft, context: Context, *, nodes: int, depth: int, top_k: int) -> Tree:
    """The tree below the last committed token, its laws `q` over the target's vocabulary beside it."""
    shape = fixed_shape(nodes, depth, top_k)
    dice = context.sampler.dice(context.position, "draft")
    tokens = [context.tokens[-1]]
    parents = [-1]
    places = {(): 0}
    rows: list[tuple[int, Tensor]] = []
    out = draft.absorb()
    level = [()]
    ancestors = None
    for reach in range(1, depth + 1):
        laws = [context.sampler.law(logits) for logits in draft.logits(out)]
        grown = []
        for ranks, law in zip(level, laws, strict=True):
            rows.append((places[ranks], law))
            wanted = [path for path in shape if len(path) == reach and path[:-1] == ranks]
            for path, token in zip(wanted, draw(law, len(wanted), dice), strict=False):
                places[path] = len(tokens)
                tokens.append(int(draft.vocabulary[token]))
                parents.append(places[ranks])
                grown.append(path)
        inner = [path for path in grown if any(longer[:-1] == path for longer in shape)]
        if not inner:
            break
        above = torch.tensor(
            [level.index(path[:-1]) for path in inner], device=draft.vocabulary.device
        )
        chosen = torch.tensor(
            [tokens[places[path]] for path in inner], device=draft.vocabulary.device
        )
        ancestors = lineage(ancestors, above)
        out = draft.expand(chosen, out.h_feature[above], ancestors, reach - 1)
        level = inner
    q = torch.zeros(
        len(tokens), draft.sayable.size, dtype=torch.float64, device=draft.vocabulary.device
    )
    for node, law in rows:
        q[node, draft.vocabulary] = law
    return Tree(tokens, parents, q)


def draw(law: Tensor, count: int, dice: object) -> list[int]:
    """Up to `count` different indices of `law`, one after the other, each from what is left of it."""
    found: list[int] = []
    while len(found) < count and law.any():
        found.append(dice.draw(law))
        law = without(law, found[-1])
    return found


@cache
def fixed_shape(nodes: int, depth: int, top_k: int) -> list[Ranks]:
    """The paths of ranks of a tree of at most `nodes` nodes, parents before children."""
    waiting = [(1, 1, (0,))]
    cheapest = []
    while waiting and len(cheapest) < nodes - 1:
        cost, length, path = heappop(waiting)
        cheapest.append(path)
        if path[-1] + 1 < top_k:
            heappush(waiting, (cost + 1, length, (*path[:-1], path[-1] + 1)))
        if length < depth:
            heappush(waiting, (cost + 1, length + 1, (*path, 0)))
    return sorted(cheapest, key=lambda path: (len(path), path))
