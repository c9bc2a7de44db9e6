"""EAGLE-2's dynamic tree (Li et al. 2024, arXiv 2406.16858), with the target's own noise where
there is any.

Level by level the `top_k` most probable paths are expanded by their `top_k` next tokens; of all
candidates the most probable make the tree, as many as its policy says. Under sampling a child's
probability is that of softmax(z), z = draft logits + T * G at its position (`levels.coupled`): how
likely the draft's own choice is the target's. Softmax of the logits alone would prune the very
children that the noise favours. At T = 0 this is EAGLE-2's rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fspad_bench.core.protocols import Context
from fspad_bench.core.tree import Tree
from fspad_bench.drafts.sizing.policy import TreePolicy
from fspad_bench.drafts.trees.levels import Levels, leading_children
from fspad_bench.engine.cpu.leading import leading


class DraftTree(NamedTuple):
    """A tree, its number of drafted levels, and each drafted node's chance of being accepted."""

    tree: Tree
    levels: int = 0
    chances: Sequence[float] = ()


class Candidates(NamedTuple):
    """All candidates so far, level by level.

    Token, chance of the whole path, parent (-1: the root).
    """

    tokens: list[int]
    chances: list[float]
    parents: list[int]


def dynamic_tree(
    draft: Levels,
    context: Context,
    *,
    policy: TreePolicy,
    budget: int,
    top_k: int,
    with_noise: bool,
) -> DraftTree:
    """Draft a tree below the last committed token, at most `budget` levels deep.

    Networks run on tensors; which candidates to expand and to keep is decided on the host, by lists
    of a few numbers.
    """
    candidates = Candidates([], [], [])
    logits = draft.absorb()  # [K, V_draft] of the frontier
    frontier = [-1]  # the nodes whose children are drafted next
    path_chances = [1.0]  # theirs
    for level in range(budget):
        if with_noise:
            best = leading_children(logits, draft.ids, context, level, top_k)
        else:
            best = leading(logits, draft.ids, top_k)
        first = len(candidates.tokens)
        graded = policy.grade(best.log_q, level)
        paths = [path_chances[number // top_k] * chance for number, chance in enumerate(graded)]
        candidates.tokens.extend(best.tokens)
        candidates.chances.extend(p if p >= 0 else 0.0 for p in paths)  # a draft may yield NaN
        candidates.parents.extend(node for node in frontier for _ in range(top_k))
        frontier = _leading(candidates.chances, range(first, len(candidates.chances)))[:top_k]
        path_chances = [candidates.chances[node] for node in frontier]
        ranked = sorted(candidates.chances, reverse=True)
        count = policy.deepen(ranked, path_chances, level + 1) if level + 1 < budget else 0
        if not count:
            break
        frontier = frontier[:count]
        rows = [(node - first) // top_k for node in frontier]
        logits = draft.expand([candidates.tokens[node] for node in frontier], rows)
    return _pruned(context.tokens[-1], candidates, policy, level + 1)


def _pruned(root: int, candidates: Candidates, policy: TreePolicy, levels: int) -> DraftTree:
    """Return the tree of the most likely candidates, as many as the policy keeps."""
    chances = candidates.chances
    order = _leading(chances, range(len(chances)))
    count = policy.keep([chances[node] for node in order], levels)
    kept = sorted(order[:count])
    place = {node: number for number, node in enumerate([-1, *kept])}
    tree = Tree(
        [root, *(candidates.tokens[node] for node in kept)],
        [-1, *(place[candidates.parents[node]] for node in kept)],
    )
    return DraftTree(tree, levels, [chances[node] for node in kept])


def _leading(chances: Sequence[float], nodes: Iterable[int]) -> list[int]:
    """Return these candidates, best first.

    Equal chances keep their order, so no node outlives its parent.
    """
    return sorted(nodes, key=chances.__getitem__, reverse=True)
