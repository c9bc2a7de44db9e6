"""Exact laws by exploring every decision: the production loop runs unchanged, its randomness is an oracle's.

The oracle stands where the sampler does. It answers a forced list of decisions, then the first possible outcome of
each further one, and notes what else could have happened; the explorer comes back for all of it. The probabilities of
the runs add up to the law of the output, without any sampling error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from fspad_bench.core.sampling import Sampler

Law = dict[tuple[int, ...], float]
MOST = 200_000


class Decision(NamedTuple):
    """What was chosen, with which probability, and which other outcomes were possible."""

    chosen: int
    probability: float
    others: list[int]


class Oracle:
    """A sampler's law without its noise; its own dice too. `forced` are the first decisions."""

    def __init__(self, sampler: Sampler, forced: Iterable[int] = ()) -> None:
        self.sampler = sampler
        self.temperature = sampler.temperature
        self.forced = list(forced)
        self.decisions = []

    def next(self, logits: Tensor, position: int) -> int:
        return self.draw(self.sampler.law(logits))

    def noise(self, position: int, tokens: Tensor) -> Tensor:
        """None: what it makes of a tree cannot matter where the answer is the target's."""
        return torch.zeros(tokens.shape, device=tokens.device)

    def law(self, logits: Tensor) -> Tensor:
        return self.sampler.law(logits)

    def dice(self, position: int, purpose: str) -> Oracle:
        return self

    def draw(self, p: Tensor) -> int:
        weights = (p / p.sum()).tolist()
        possible = [i for i, weight in enumerate(weights) if weight > 0]
        at = len(self.decisions)
        chosen = self.forced[at] if at < len(self.forced) else possible[0]
        if chosen not in possible:
            raise RuntimeError(
                "the same decisions led elsewhere: draw with context.sampler.dice, keep no state"
            )
        self.decisions.append(
            Decision(chosen, weights[chosen], [i for i in possible if i != chosen])
        )
        return chosen

    def accept(self, probability: float) -> bool:
        a = min(1.0, max(0.0, probability))
        return self.draw(torch.tensor([a, 1 - a], dtype=torch.float64)) == 0


class TooMany(Exception):
    """There are more ways to go than anybody would wait for."""


def explore(sampler: Sampler, play: Callable[[Oracle], tuple[int, ...]]) -> Law:
    """output -> probability, over every way in which `play` can go. Raises TooMany beyond `MOST` of them."""
    law = {}
    played = 0
    waiting: list[list[int]] = [[]]
    while waiting:
        forced = waiting.pop()
        played = played + 1
        if played > MOST:
            raise TooMany(f"more than {MOST:,} ways to go")
        oracle = Oracle(sampler, forced)
        output = play(oracle)
        weight = 1.0
        for decision in oracle.decisions:
            weight *= decision.probability
        law[output] = law.get(output, 0.0) + weight
        taken = [decision.chosen for decision in oracle.decisions]
        for at in range(len(forced), len(taken)):
            waiting += [[*taken[:at], other] for other in oracle.decisions[at].others]
    return law


def distance(p: Law, q: Law) -> float:
    """Total variation."""
    return sum(abs(p.get(output, 0.0) - q.get(output, 0.0)) for output in p.keys() | q.keys()) / 2
