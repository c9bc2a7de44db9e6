"""Exact output distributions: the production loop, with every random decision enumerated.

- The oracle takes the sampler's place. It replays a list of forced decisions, then takes the first
  possible outcome of each further decision and records the alternatives.
- `explore` revisits every alternative. The probabilities of all runs add up to the distribution of
  the output, without sampling error.
- A run may name the state that it has come to, where all that follows depends on that state alone
  (`Oracle.reach`). What follows an equal state is then explored once, however many runs lead there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, field, fields
from itertools import pairwise
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from fspad_bench.core.sampling import Sampler

Distribution = dict[tuple[int, ...], float]  # output -> probability
MAX_PATHS = 200_000


@dataclass(frozen=True)
class RememberingSampler(Sampler):
    """A sampler that processes equal logits once: thousands of generations meet the same ones.

    It shares what it remembers with the samplers of its other streams. What it returns is the
    caller's own, to be changed in place.
    """

    distributions: dict[tuple[float, ...], Tensor] = field(default_factory=dict, compare=False)
    processed: dict[tuple[float, ...], tuple[Tensor, Tensor]] = field(
        default_factory=dict, compare=False
    )

    @classmethod
    def of(cls, sampler: Sampler) -> RememberingSampler:
        return cls(**{own.name: getattr(sampler, own.name) for own in fields(Sampler)})

    def distribution(self, logits: Tensor) -> Tensor:
        key = tuple(logits.tolist())
        if key not in self.distributions:
            self.distributions[key] = super().distribution(logits)
        return self.distributions[key].clone()

    def process(self, logits: Tensor, position: int | None = None) -> tuple[Tensor, Tensor]:
        key = tuple(logits.tolist())
        if key not in self.processed:
            self.processed[key] = super().process(logits, position)
        scores, tokens = self.processed[key]
        return scores.clone(), tokens.clone()


class Decision(NamedTuple):
    """One random decision: the chosen outcome, its probability, and the other possible outcomes."""

    chosen: int
    probability: float
    others: list[int]


class Oracle:
    """A sampler without noise whose decisions are forced; it also serves as its own dice.

    `known` are states whose future is explored by other runs.
    """

    def __init__(
        self, sampler: Sampler, forced: Iterable[int] = (), known: Collection[Hashable] = ()
    ) -> None:
        self.sampler = sampler
        self.temperature = sampler.temperature
        self.greedy = sampler.greedy
        self.processors = sampler.processors
        self.adjust = sampler.adjust
        self.forced = list(forced)
        self.known = known
        self.decisions: list[Decision] = []
        self.states: list[tuple[Hashable, int]] = []  # each with the decisions before it

    def reach(self, state: Hashable) -> None:
        """Note that whatever follows depends on `state` alone.

        Raises KnownStateError where another run explores it.
        """
        number = len(self.decisions)
        self.states.append((state, number))
        if number >= len(self.forced) and state in self.known:
            raise KnownStateError

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


class KnownStateError(Exception):
    """A run came to a state whose future another run explores."""


class Ways:
    """The probabilities of all ways from a state to the next states and to outputs."""

    def __init__(self) -> None:
        self.states: defaultdict[Hashable, float] = defaultdict(float)
        self.outputs: defaultdict[tuple[int, ...], float] = defaultdict(float)


START = "start"  # the state before any decision


def explore(sampler: Sampler, play: Callable[[Oracle], tuple[int, ...]]) -> Distribution:
    """Return the distribution of `play`'s output over all its decision paths.

    Raises DecisionTreeTooLarge when there are more than MAX_PATHS of them.
    """
    sampler = RememberingSampler.of(sampler)
    ways: dict[Hashable, Ways] = {START: Ways()}
    paths = 0
    waiting: list[list[int]] = [[]]
    while waiting:
        forced = waiting.pop()
        paths += 1
        if paths > MAX_PATHS:
            raise DecisionTreeTooLarge(f"more than {MAX_PATHS:,} decision paths")
        oracle = Oracle(sampler, forced, ways)
        try:
            output = play(oracle)
        except KnownStateError:
            output = None
        _record(ways, oracle, output)
        chosen = [decision.chosen for decision in oracle.decisions]
        for i in range(len(forced), len(chosen)):
            waiting += [[*chosen[:i], other] for other in oracle.decisions[i].others]
    return _distribution(START, ways, {})


def _record(ways: dict[Hashable, Ways], oracle: Oracle, output: tuple[int, ...] | None) -> None:
    """Add the ways that a run was the first to go: those that end after its forced decisions.

    Without an output it ended in a known state.
    """
    points = [(START, 0), *oracle.states]
    for (state, start), (other, end) in pairwise(points):
        if end >= len(oracle.forced):
            ways[state].states[other] += _weight(oracle, start, end)
            ways.setdefault(other, Ways())
    if output is not None:
        state, start = points[-1]
        ways[state].outputs[output] += _weight(oracle, start, len(oracle.decisions))


def _weight(oracle: Oracle, start: int, end: int) -> float:
    return prod(decision.probability for decision in oracle.decisions[start:end])


def _distribution(
    state: Hashable, ways: dict[Hashable, Ways], known: dict[Hashable, Distribution]
) -> Distribution:
    """Return the distribution of the output from a state on."""
    if state not in known:
        outputs = dict(ways[state].outputs)
        for other, weight in ways[state].states.items():
            for output, probability in _distribution(other, ways, known).items():
                outputs[output] = outputs.get(output, 0.0) + weight * probability
        known[state] = outputs
    return known[state]


def distance(p: Distribution, q: Distribution) -> float:
    """Return the total variation distance."""
    return sum(abs(p.get(output, 0.0) - q.get(output, 0.0)) for output in p.keys() | q.keys()) / 2
