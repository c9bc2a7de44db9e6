"""How large a tree is: of a fixed size, or to where expected tokens a second are highest on this
machine.

A step yields one token and every drafted one whose whole path is accepted; it costs the draft's
levels and one forward of the tree. The adaptive tree keeps the nodes that raise the ratio, drafts
another level only where that would raise it further, and proposes nothing at all where no node is
worth its cost (cf. Sequoia, Chen et al. 2024, arXiv 2402.12374, whose hardware-aware optimiser
chooses one shape for all steps; here each step has its own, unless a device's graph holds it to
one). The chance of a node is what a calibration says, times how far this text has kept to it so
far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp
from typing import Protocol

from fspad_bench.drafts.sizing.calibration import Calibration
from fspad_bench.drafts.sizing.costs import NEAR, SIZES, Costs

PRIOR = 8.0  # drafted tokens for which a calibration is believed
FADING = 0.98  # the weight of a step one step later
TREES = ("auto", "fixed")
MOST_NODES = 64  # of a tree that the machine sizes, where no bound is given
FAINT = 0.005  # a chance below which no node is worth its share of a forward, however cheap


@dataclass(frozen=True)
class Trust:
    """Drafted tokens of this text expected to be accepted, and those accepted, both fading.

    `share` is their ratio, drawn to 1 by a prior: a calibration is that of the conversations it was
    fitted on, and a text may be half or twice as easy.
    """

    expected: float = 0.0
    accepted: float = 0.0

    @property
    def share(self) -> float:
        return (PRIOR + self.accepted) / (PRIOR + self.expected)

    def after(self, expected: float, accepted: int) -> Trust:
        """Return the trust after a step that accepted `accepted` of `expected` tokens."""
        return Trust(FADING * self.expected + expected, FADING * self.accepted + accepted)


class TreePolicy(Protocol):
    """Decides how large a tree grows. `chances` are those of whole paths, best first."""

    def at(self, prefix: int, trust: float, batch: int = 1) -> TreePolicy:
        """Return this policy at a prefix length, for a text with so much trust, which is one of
        `batch` whose trees share a forward.
        """

    def grade(self, log_q: Sequence[float], level: int) -> list[float]:
        """Turn the log-probabilities of children at a level into chances of being accepted."""

    def deepen(self, chances: Sequence[float], frontier: Sequence[float], levels: int) -> int:
        """Return from how many paths of the frontier, the best ones, another level is drafted after
        `levels`; 0 where none is.
        """

    def keep(self, chances: Sequence[float], levels: int) -> int:
        """Return how many of all candidates make the tree."""


@dataclass(frozen=True)
class FixedTree:
    """EAGLE-2's: `nodes` with the root, `depth` levels."""

    nodes: int
    depth: int

    def at(self, prefix: int, trust: float, batch: int = 1) -> FixedTree:
        return self

    def grade(self, log_q: Sequence[float], level: int) -> list[float]:
        return [exp(value) for value in log_q]

    def deepen(self, chances: Sequence[float], frontier: Sequence[float], levels: int) -> int:
        return len(frontier) if levels < self.depth else 0

    def keep(self, chances: Sequence[float], levels: int) -> int:
        return min(self.nodes - 1, len(chances))


@dataclass(frozen=True)
class ConfidentTree(FixedTree):
    """A fixed tree that ends at a level none of whose paths has a chance of at least `stop`."""

    stop: float

    def deepen(self, chances: Sequence[float], frontier: Sequence[float], levels: int) -> int:
        return super().deepen(chances, frontier, levels) if frontier[0] >= self.stop else 0


@dataclass(frozen=True)
class AdaptiveTree:
    """The tree that pays on this machine, within `nodes` and `depth`."""

    nodes: int
    depth: int
    top_k: int
    costs: Costs
    calibration: Calibration
    greedy: bool
    prefix: int = NEAR
    trust: float = 1.0
    batch: int = 1

    def at(self, prefix: int, trust: float, batch: int = 1) -> AdaptiveTree:
        return replace(self, prefix=prefix, trust=trust, batch=batch)

    def grade(self, log_q: Sequence[float], level: int) -> list[float]:
        return self.calibration.curve(level, greedy=self.greedy).grade(log_q)

    def deepen(self, chances: Sequence[float], frontier: Sequence[float], levels: int) -> int:
        """Return how many paths may have children in the tree, if a next level whose children turn
        out as on average raises the rate: those as likely as its last node. The fewer the rows, the
        cheaper the level.
        """
        if levels >= self.depth:
            return 0
        shares = self.calibration.curve(levels, greedy=self.greedy).shares(self.top_k)
        expected = [chance * share for chance in frontier for share in shares]
        together = sorted([*chances, *expected], reverse=True)
        now, _ = self._best(chances, levels)
        then, size = self._best(together, levels + 1)
        if then <= now:
            return 0
        return sum(chance >= together[size - 1] for chance in frontier)

    def keep(self, chances: Sequence[float], levels: int) -> int:
        return self._best(chances, levels)[1]

    def _best(self, chances: Sequence[float], levels: int) -> tuple[float, int]:
        """Return `best_size` of a tree that took so many levels to draft."""
        overhead = self.costs.overhead_seconds(levels, self.prefix)
        return best_size(chances, self._forwards, overhead, self.nodes - 1, self.trust)

    @cached_property
    def _forwards(self) -> list[float]:
        return self.costs.all_forwards(self.prefix, self.batch)


def best_size(
    chances: Sequence[float],
    forwards: Sequence[float],
    spent: float,
    most: int,
    trust: float = 1.0,
) -> tuple[float, int]:
    """Return the highest rate, in tokens a second, over the number of drafted nodes, and that
    number.

    `chances`, best first, which `trust` multiplies; `forwards[n]`: seconds of a forward of n nodes,
    root included; `spent`: seconds of the step beside it.
    """
    tokens = 1.0
    best = tokens / (spent + forwards[1])
    size = 0
    for number, chance in enumerate(chances[:most], 1):
        if chance < FAINT:
            break
        tokens += trust * chance
        rate = tokens / (spent + forwards[number + 1])
        if rate > best:
            best = rate
            size = number
    return best, size


def best_shape(
    costs: Costs, calibration: Calibration, *, nodes: int, depth: int, top_k: int
) -> FixedTree:
    """Return the fixed tree within these bounds whose rate is highest in an average step.

    Greedy and sampled steps count alike. For a device, where a step is captured with one shape.
    """

    def rate(tree: FixedTree, greedy: bool) -> float:
        chances = sorted(_average_chances(calibration, tree.depth, top_k, greedy), reverse=True)
        tokens = 1 + sum(chances[: tree.nodes - 1])
        return tokens / (costs.overhead_seconds(tree.depth) + costs.forward_seconds(tree.nodes))

    shapes = [
        FixedTree(n, levels) for n in SIZES if 2 <= n <= nodes for levels in range(1, depth + 1)
    ]
    return max(shapes, key=lambda tree: rate(tree, True) * rate(tree, False))


def _average_chances(calibration: Calibration, depth: int, top_k: int, greedy: bool) -> list[float]:
    """Return the chances of all candidates of a tree so deep, when every node's children turn out
    as on average.
    """
    chances: list[float] = []
    frontier = [1.0]
    for level in range(depth):
        shares = calibration.curve(level, greedy=greedy).shares(top_k)
        children = [chance * share for chance in frontier for share in shares]
        chances += children
        frontier = sorted(children, reverse=True)[:top_k]
    return chances
