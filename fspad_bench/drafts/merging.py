"""Several drafters' candidates in one tree, as many as pay.

- A `Proposal` is a tree and the chance of each drafted node: that the target accepts the whole path
  to it.
- A drafter that does not know its chances has a `TrackRecord`: how often such guesses of its were
  right in this text.
- The best size of a tree is where expected tokens a second are highest (`sizing.policy.best_size`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from fspad_bench.core.tree import Tree

FIRST_GUESS = 0.5  # the chance of a first child, before anything is known
BELIEF = 2.0  # guesses for which that is believed
DEEPEST = 8  # depths and ranks beyond these are one
LAST_RANK = 3

Kind = tuple[int, int, int]  # of a guess: how far its drafter went (log2), its depth, its rank


class Proposal(NamedTuple):
    """A tree and the chances of its drafted nodes, node 1's first."""

    tree: Tree
    chances: Sequence[float]


class TrackRecord:
    """The share of right guesses of a drafter, by how far it drafted, by depth and by rank.

    A drafter that copies goes far where its match is long, and is right more often there.
    """

    def __init__(self) -> None:
        self.tried: dict[Kind, int] = defaultdict(int)
        self.right: dict[Kind, int] = defaultdict(int)

    def chances(self, tree: Tree) -> list[float]:
        """Return the chance of each drafted node."""
        return self._chances(tree, FIRST_GUESS)

    def hopes(self, tree: Tree) -> list[float]:
        """Return the chances that are still possible: what is not known yet is taken to be right.

        By them nothing is given up before it was tried.
        """
        return self._chances(tree, 1.0)

    def _chances(self, tree: Tree, first_guess: float) -> list[float]:
        chances = [1.0]
        for parent, kind in zip(tree.parents[1:], _kinds(tree), strict=True):
            chances.append(chances[parent] * self._share(kind, first_guess))
        return chances[1:]

    def learn(self, tree: Tree, tokens: Sequence[int]) -> None:
        """Take what the target said in place of this tree's drafted tokens."""
        kinds = _kinds(tree)
        node = 0
        for token in tokens:
            for child in tree.offspring[node]:
                self.tried[kinds[child - 1]] += 1
            if (node, token) not in tree.children:
                return
            node = tree.children[node, token]
            self.right[kinds[node - 1]] += 1

    def _share(self, kind: Kind, first_guess: float) -> float:
        """Return the chance of a guess whose parent was right."""
        rank = kind[-1]
        prior = first_guess if rank == 0 else FIRST_GUESS / (1 + rank)
        return (self.right[kind] + BELIEF * prior) / (self.tried[kind] + BELIEF)


def _kinds(tree: Tree) -> list[Kind]:
    """Return the kind of each drafted node."""
    reach = max(tree.depths).bit_length()
    ranks = [0] * len(tree)
    for children in tree.offspring:
        for rank, child in enumerate(children):
            ranks[child] = min(rank, LAST_RANK)
    return [(reach, min(tree.depths[i], DEEPEST), ranks[i]) for i in range(1, len(tree))]


def merged(root: int, proposals: Sequence[Proposal]) -> Proposal:
    """Return the trie of all proposals below the same root.

    A path that several propose fails only if each of them is wrong, as if they were wrong
    independently; no node is likelier than its parent.
    """
    tokens = [root]
    parents = [-1]
    failing = [0.0]
    known: dict[tuple[int, int], int] = {}
    for tree, chances in proposals:
        place = [0] * len(tree)
        for node in range(1, len(tree)):
            edge = (place[tree.parents[node]], tree.tokens[node])
            if edge not in known:
                known[edge] = len(tokens)
                tokens.append(edge[1])
                parents.append(edge[0])
                failing.append(1.0)
            place[node] = known[edge]
            failing[known[edge]] *= 1 - chances[node - 1]
    likely = [1.0]
    for node in range(1, len(tokens)):
        likely.append(min(likely[parents[node]], 1 - failing[node]))
    return Proposal(Tree(tokens, parents), likely[1:])


def pruned(proposal: Proposal, size: int) -> Tree:
    """Return the tree of the `size` likeliest drafted nodes."""
    tree, chances = proposal
    order = sorted(range(1, len(tree)), key=lambda node: chances[node - 1], reverse=True)
    kept = [0, *sorted(order[:size])]
    place = {node: number for number, node in enumerate(kept)}
    return Tree(
        [tree.tokens[node] for node in kept],
        [-1, *(place[tree.parents[node]] for node in kept[1:])],
    )
