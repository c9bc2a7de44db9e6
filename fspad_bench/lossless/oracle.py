"""Exact output distributions: the production loop, with every random decision enumerated.

- The oracle takes the sampler's place. It replays a list of forced decisions, then takes the first
  possible outcome of each further decision and records the alternatives.
- `explore` revisits every alternative. The probabilities of all runs add up to the distribution of
  the output, without sampling error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fspad_bench.core.sampling import Sampler

Distribution = dict[tuple[int, ...], float]  # output -> probability
MAX_PATHS = 200_000


@dataclass(frozen=True)
class RememberingSampler(Sampler):
    """A sampler that processes equal logits once: thousands of generations meet the same ones.

    It shares what it remembers with the samplers of its other streams.
    """

    processed: dict[tuple[float, ...], Tensor] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, sampler: Sampler) -> RememberingSampler:
        return cls(sampler.temperature, sampler.top_k, sampler.top_p, sampler.seed, sampler.stream)

    def distribution(self, logits: Tensor) -> Tensor:
        key = tuple(logits.tolist())
        if key not in self.processed:
            self.processed[key] = super().distribution(logits)
        return self.processed[key]


class Decision(NamedTuple):
    """One random decision: the chosen outcome, its probability, and the other possible outcomes."""

    chosen: int
    probability: float
    others: list[int]


class Oracle:
    """A sampler without noise whose decisions are forced; it also serves as its own dice."""

    def __init__(self, sampler: Sampler, forced: Iterable[int] = ()) -> None:
        self.sampler = sampler
        self.temperature = sampler.temperature
        self.greedy = sampler.greedy
        self.forced = list(forced)
        self.decisions: list[Decision] = []

    def next(self, logits: Tensor, position: int) -> int:
        return self.draw(self.sampler.distribution(logits))

    def noise(self, position: int, tokens: Tensor) -> Tensor:
        """Return zeros: a drafter's use of the noise cannot change what the target chooses."""
        return torch.zeros(tokens.shape, device=tokens.device)

    def distribution(self, logits: Tensor) -> Tensor:
        return self.sampler.distribution(logits)

    def dice(self, position: int, purpose: str) -> Oracle:
        return self

    def draw(self, p: Tensor) -> int:
        """Decide between the outcomes of `p [V]` that have a probability above 0."""
        weights = (p / p.sum()).tolist()
        possible = [i for i, weight in enumerate(weights) if weight > 0]
        number = len(self.decisions)
        chosen = self.forced[number] if number < len(self.forced) else possible[0]
        if chosen not in possible:
            raise RuntimeError(
                "the same decisions led elsewhere: draw with context.sampler.dice, keep no state"
            )
        others = [i for i in possible if i != chosen]
        self.decisions.append(Decision(chosen, weights[chosen], others))
        return chosen

    def accept(self, probability: float) -> bool:
        a = min(1.0, max(0.0, probability))
        return self.draw(torch.tensor([a, 1 - a], dtype=torch.float64)) == 0


class DecisionTreeTooLarge(Exception):
    """More than MAX_PATHS decision paths."""


def explore(sampler: Sampler, play: Callable[[Oracle], tuple[int, ...]]) -> Distribution:
    """Return the distribution of `play`'s output over all its decision paths.

    Raises DecisionTreeTooLarge when there are more than MAX_PATHS of them.
    """
    sampler = RememberingSampler.of(sampler)
    outputs: Distribution = {}
    paths = 0
    waiting: list[list[int]] = [[]]
    while waiting:
        forced = waiting.pop()
        paths += 1
        if paths > MAX_PATHS:
            raise DecisionTreeTooLarge(f"more than {MAX_PATHS:,} decision paths")
        oracle = Oracle(sampler, forced)
        output = play(oracle)
        weight = 1.0
        for decision in oracle.decisions:
            weight *= decision.probability
        outputs[output] = outputs.get(output, 0.0) + weight
        chosen = [decision.chosen for decision in oracle.decisions]
        for i in range(len(forced), len(chosen)):
            waiting += [[*chosen[:i], other] for other in oracle.decisions[i].others]
    return outputs


def distance(p: Distribution, q: Distribution) -> float:
    """Return the total variation distance."""
    return sum(abs(p.get(output, 0.0) - q.get(output, 0.0)) for output in p.keys() | q.keys()) / 2
