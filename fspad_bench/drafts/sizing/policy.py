"""How far a tree grows: to a fixed size, or to where expected tokens a second are highest on this machine.

A round yields one token and every drafted one whose whole path is chosen; it costs the draft's levels and one forward
of the tree. The sized tree keeps the nodes that raise the ratio, drafts another level only where it would raise it
further, and drafts nothing at all where no node is worth its cost (cf. Sequoia, Chen et al. 2024, arXiv 2402.12374,
whose hardware-aware optimiser chooses one shape for all rounds; here each round has its own, unless a device's graph
holds it to one). What nodes are likely to bring is what a calibration says, times what this text has made of it so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp
from typing import Protocol

from fspad_bench.drafts.sizing.calibration import Calibration
from fspad_bench.drafts.sizing.costs import NEAR, SIZES, Costs
from fspad_bench.drafts.sizing.machine_speed import Paced

PRIOR = 8.0  # drafted tokens for which a calibration is believed
FADING = 0.98  # what a round still counts for one round later
GRAIN = 32  # tokens by which a prefix grows before its costs are looked up anew
FAINT = 0.005  # a chance below which no node is worth its share of a forward, however cheap


@dataclass(frozen=True)
class Trust:
    """Which share of the drafted tokens that its calibration promises a text has been choosing.

    A calibration is that of the conversations it was fitted on; a text may be half or twice as easy.
    """

    promised: float = 0.0
    chosen: float = 0.0

    @property
    def share(self) -> float:
        return (PRIOR + self.chosen) / (PRIOR + self.promised)

    def after(self, promised: float, chosen: int) -> Trust:
        """With one more round, in which `chosen` of the `promised` tokens came."""
        return Trust(FADING * self.promised + promised, FADING * self.chosen + chosen)


class Size(Protocol):
    """`behind` is the same for a tree behind so many tokens of a text that deserves so much `trust`; `grade` turns
    children's log-probabilities into the chances that count; `grow` says whether a level beyond `levels` is drafted;
    `keep` how many of all candidates make the tree. What these two are given are chances of whole paths, best first."""

    def behind(self, tokens: int, trust: float) -> Size: ...
    def grade(self, log_q: Sequence[float], level: int) -> list[float]: ...
    def grow(self, chances: Sequence[float], frontier: Sequence[float], levels: int) -> bool: ...
    def keep(self, chances: Sequence[float], levels: int) -> int: ...


@dataclass(frozen=True)
class FixedSize:
    """EAGLE-2's: so many nodes with the root, so many levels."""

    nodes: int
    depth: int

    def behind(self, tokens: int, trust: float) -> FixedSize:
        return self

    def grade(self, log_q: Sequence[float], level: int) -> list[float]:
        return [exp(value) for value in log_q]

    def grow(self, chances: Sequence[float], frontier: Sequence[float], levels: int) -> bool:
        return levels < self.depth

    def keep(self, chances: Sequence[float], levels: int) -> int:
        return min(self.nodes - 1, len(chances))


@dataclass(frozen=True)
class BestSize:
    """What pays on this machine, within `nodes` and `depth`."""

    nodes: int
    depth: int
    top_k: int
    costs: Costs | Paced
    calibration: Calibration
    greedy: bool
    tokens: int = NEAR
    trust: float = 1.0

    def behind(self, tokens: int, trust: float) -> BestSize:
        return replace(self, tokens=tokens - tokens % GRAIN, trust=trust)

    def grade(self, log_q: Sequence[float], level: int) -> list[float]:
        return self.calibration.curve(level, greedy=self.greedy).grade(log_q)

    def grow(self, chances: Sequence[float], frontier: Sequence[float], levels: int) -> bool:
        """Whether the level that the frontier would have, as children usually turn out, raises the rate."""
        if levels >= self.depth:
            return False
        shares = self.calibration.curve(levels, greedy=self.greedy).shares(self.top_k)
        hoped = [chance * share for chance in frontier for share in shares]
        now, _ = self._best(chances, levels)
        then, _ = self._best(sorted([*chances, *hoped], reverse=True), levels + 1)
        return then > now

    def keep(self, chances: Sequence[float], levels: int) -> int:
        return self._best(chances, levels)[1]

    def _best(self, chances: Sequence[float], levels: int) -> tuple[float, int]:
        """The highest rate, in tokens a second, over the number of drafted nodes, and that number."""
        spent = self.costs.beside(levels, self.tokens)
        trust = self.trust
        tokens = 1.0
        forwards = self._forwards
        best = tokens / (spent + forwards[0])
        nodes = 0
        for number, chance in enumerate(chances[: self.nodes - 1], 1):
            if chance < FAINT:
                break
            tokens += trust * chance
            rate = tokens / (spent + forwards[number])
            if rate > best:
                best = rate
                nodes = number
        return best, nodes

    @cached_property
    def _forwards(self) -> list[float]:
        """Of trees with so many drafted nodes, beginning with none."""
        return self.costs.forwards(self.tokens)[1:]


def best_shape(
    costs: Costs, calibration: Calibration, *, nodes: int, depth: int, top_k: int
) -> FixedSize:
    """The fixed size within these bounds whose rate is highest in a round like any other, greedy and sampled together.

    For a device, where a round is captured with one shape.
    """

    def rate(size: FixedSize, greedy: bool) -> float:
        chances = sorted(_usual(calibration, size.depth, top_k, greedy), reverse=True)
        return (1 + sum(chances[: size.nodes - 1])) / (
            costs.beside(size.depth) + costs.forward(size.nodes)
        )

    shapes = [
        FixedSize(n, levels) for n in SIZES if 2 <= n <= nodes for levels in range(1, depth + 1)
    ]
    return max(shapes, key=lambda size: rate(size, True) * rate(size, False))


def _usual(calibration: Calibration, depth: int, top_k: int, greedy: bool) -> list[float]:
    """The chances of all candidates of a tree so deep, when every node's children turn out as they usually do."""
    found = []
    frontier = [1.0]
    for level in range(depth):
        shares = calibration.curve(level, greedy=greedy).shares(top_k)
        grown = [chance * share for chance in frontier for share in shares]
        found += grown
        frontier = sorted(grown, reverse=True)[:top_k]
    return found
