"""Token recycling (Luo et al. 2024, arXiv 2408.08696): the target's own runners-up are the draft.

Written from its description. A table holds, for each token, the candidates that the target ranked
highest when that token was read last.

1. Draft: a tree of a fixed shape is filled level by level from the last committed token: the child
   of rank r of a node is the r-th candidate in the table's entry of the node's token. A token
   without an entry has no children.
2. Learn: each token of the scored tree, accepted or not, gets the best candidates of its logits as
   its new entry. Where a token stands in several nodes the accepted one counts, or else the last.

How this one differs from what was published:

- Of the filled tree those nodes are proposed that pay on this machine (`drafts.sized`); with a size
  given, all.
- The shape follows from `acceptance`, the assumed probability that a candidate is right, by rank
  and independent of the node: the `nodes` of the highest products along their paths, which is the
  tree of the most expected tokens. The published tree (80 nodes, six levels) was shaped by hand.
- `scope=run` keeps the table from prompt to prompt, as published. By default it starts anew, with
  what followed each token in the prompt (`prompt=false` leaves that out).
- At T > 0 an entry's candidates are ranked by their logits plus T times the noise of the child's
  position, which the target's choice will meet; the logits are those of the entry's own step.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fspad_bench.core.protocols import Context, Scope, Scores, Step, Target
from fspad_bench.core.tree import Tree
from fspad_bench.drafts.sized import SizedDrafter
from fspad_bench.drafts.sizing.policy import MOST_NODES
from fspad_bench.engine.session import LARGEST_TREE
from fspad_bench.util.errors import BenchError

ACCEPTANCE = "0.45,0.15,0.08,0.05,0.03,0.02,0.02,0.01"
FIXED_NODES = 16
MOST_DEPTH = 16


class Entry(NamedTuple):
    """The candidates after a token, best first: ids `[k]` and logits `[k]`."""

    tokens: Tensor
    logits: Tensor


class Slot(NamedTuple):
    """A node of the template: the node above it, and the rank of its token there."""

    parent: int
    rank: int
    depth: int


class TokenRecycling(SizedDrafter):
    """A tree of up to `nodes`, the root among them, and `depth` levels, from the table.

    `tree`: see `SizedDrafter`; empty, it is fixed where `nodes` is given.
    """

    def __init__(
        self,
        target: Target,
        *,
        tree: str = "",
        nodes: int | None = None,
        depth: int = 5,
        acceptance: str = ACCEPTANCE,
        prompt: bool = True,
        scope: Scope = "prompt",
    ) -> None:
        super().__init__(target, tree=tree, size=nodes)
        nodes = self.size_of(nodes, auto=MOST_NODES, fixed=FIXED_NODES)
        if not (2 <= nodes <= LARGEST_TREE and 1 <= depth <= MOST_DEPTH):
            raise BenchError(
                f"token_recycling takes 2 <= nodes <= {LARGEST_TREE} and "
                f"1 <= depth <= {MOST_DEPTH}, not {nodes}, {depth}",
                f"the defaults are nodes={FIXED_NODES}, depth=5",
            )
        rates = read_rates(acceptance)
        self.acceptance = acceptance
        self.nodes = nodes
        self.depth = depth
        self.ranks = len(rates)
        self.template = template(rates, nodes, depth)
        self.prompt = prompt
        self.scope = scope
        self.table: dict[int, Entry] = {}

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            "nodes": self.nodes,
            "depth": self.depth,
            "acceptance": self.acceptance,
            "prompt": self.prompt,
            "scope": self.scope,
        }

    def begin(self, context: Context, scores: Scores) -> None:
        super().begin(context, scores)
        if self.scope == "prompt":
            self.table = {}
        if self.prompt:
            self._learn_text(context.tokens[: context.prompt_length])
        self._learn(context.tokens[-2:-1], scores.logits[-1:], [0])

    def candidates(self, context: Context, budget: int) -> Tree:
        tokens = [context.tokens[-1]]
        parents = [-1]
        nodes = {0: 0}  # of the template -> of this tree
        ranked: dict[int, list[int]] = {}
        for number, (parent, rank, depth) in enumerate(self.template, start=1):
            if depth > budget or parent not in nodes:
                continue
            node = nodes[parent]
            if node not in ranked:
                ranked[node] = self._candidates(tokens[node], context, depth)
            if rank < len(ranked[node]):
                nodes[number] = len(tokens)
                tokens.append(ranked[node][rank])
                parents.append(node)
        return Tree(tokens, parents)

    def observe(self, step: Step) -> None:
        super().observe(step)
        path = step.accepted.path
        refused = sorted(set(range(len(step.tree))) - set(path))
        self._learn(step.tree.tokens, step.scores.logits, [*refused, *path])

    def _candidates(self, token: int, context: Context, depth: int) -> list[int]:
        """Return what may follow a token at `depth - 1`, best first."""
        entry = self.table.get(token)
        if entry is None:
            return []
        sampler = context.sampler
        if sampler is None or sampler.greedy:
            return entry.tokens.tolist()
        noise = sampler.noise(context.position + depth - 1, entry.tokens)
        order = (entry.logits + sampler.temperature * noise).argsort(descending=True, stable=True)
        return entry.tokens[order].tolist()

    def _learn(self, tokens: Sequence[int], logits: Tensor, order: list[int]) -> None:
        """Enter the candidates of each row of `logits [N, V]`; later ones of `order` prevail."""
        best = logits.topk(min(self.ranks, logits.shape[-1]))
        values = best.values.to("cpu", torch.float32)
        indices = best.indices.cpu()
        for node in order:
            self.table[tokens[node]] = Entry(indices[node], values[node])

    def _learn_text(self, tokens: list[int]) -> None:
        """Enter what followed each token of a text, the latest first, at equal distances."""
        followers: dict[int, dict[int, None]] = {}
        for token, following in zip(reversed(tokens[:-1]), reversed(tokens[1:]), strict=True):
            followers.setdefault(token, {})[following] = None
        for token, seen in followers.items():
            if token not in self.table:
                best = torch.tensor(list(seen)[: self.ranks])
                self.table[token] = Entry(best, -torch.arange(len(best), dtype=torch.float32))


def read_rates(text: str) -> list[float]:
    """Read acceptance rates by rank. Raises BenchError unless they descend in (0, 1]."""
    try:
        rates = [float(rate) for rate in text.split(",")]
    except ValueError:
        rates = []
    descends = rates == sorted(rates, reverse=True)
    if not (rates and descends and rates[-1] > 0 and rates[0] <= 1 and sum(rates) < 1 + 1e-9):
        raise BenchError(
            f"token_recycling.acceptance is '{text}'",
            f"give rates by rank that descend and add up to 1 at most, such as {ACCEPTANCE}",
        )
    return rates


def template(rates: list[float], nodes: int, depth: int) -> list[Slot]:
    """Return the tree of the most expected tokens, level by level, without its root."""
    # minus the product along a path of ranks, the order of its entry, the path
    heap: list[tuple[float, int, tuple[int, ...]]] = [(-rates[0], 0, (0,))]
    paths: list[tuple[int, ...]] = []
    order = 0
    while heap and len(paths) < nodes - 1:
        minus_product, _, path = heappop(heap)
        paths.append(path)
        ways: list[tuple[tuple[int, ...], float]] = []
        if path[-1] + 1 < len(rates):  # the next sibling
            ways.append(((*path[:-1], path[-1] + 1), rates[path[-1] + 1] / rates[path[-1]]))
        if len(path) < depth:  # the first child
            ways.append(((*path, 0), rates[0]))
        for way, factor in ways:
            order += 1
            heappush(heap, (minus_product * factor, order, way))
    paths.sort(key=lambda path: (len(path), path))
    numbers = {path: number for number, path in enumerate([(), *paths])}
    return [Slot(numbers[path[:-1]], path[-1], len(path)) for path in paths]
