"""Search for the sublayers that a target can draft without (SWIFT, Xia et al. 2024, arXiv
2410.06916).

- A candidate is a set of attention and MLP sublayers to skip, of a fixed size, of all layers but
  the first and the last. Most are drawn at random; every so often one is suggested by a Gaussian
  process over the sets tried so far, where it is uncertain or expects much.
- A set's score is the share of the tokens of a window of the text that it would have drafted. The
  first set is scored first, and a candidate is compared with the best set on the same window: the
  highest of many scores on different texts would be the luckiest.
- Everything follows from the seed and the scores, so a search over the same text goes the same way.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fspad_bench.core.protocols import LayerPlan
from fspad_bench.drafts.language_model import inner_layers

SEED = "layers"
POOL = 256  # random sets among which the Gaussian process chooses
KAPPA = 2.5  # standard deviations that uncertainty is worth
NOISE = 1e-2  # variance of a score beside the process

Score = Callable[[LayerPlan], float]


@dataclass(frozen=True)
class Effort:
    """When candidates are suggested (every `suggest`th; 0: never), and when a search ends: at a
    score of `enough`, after so many candidates in a row that were no better, or so many in all.
    """

    suggest: int = 25
    enough: float = 0.95
    patience: int = 300
    trials: int = 1000


class LayerSearch:
    """The best set so far, and one more candidate at each `step`."""

    def __init__(self, layers: int, first: LayerPlan, size: int, effort: Effort) -> None:
        self.inner = list(inner_layers(layers))
        self.size = size
        self.effort = effort
        self.best = first
        self.best_score: float | None = None  # on the present window
        self.random = random.Random(SEED)
        self.tried: list[LayerPlan] = []
        self.scores: list[float] = []
        self.in_vain = 0

    @property
    def active(self) -> bool:
        effort = self.effort
        enough = self.best_score is not None and self.best_score >= effort.enough
        return not enough and self.in_vain < effort.patience and len(self.tried) < effort.trials

    def move(self) -> None:
        """Take up a new window: the best set is scored on it before any other."""
        self.best_score = None

    def step(self, score: Score) -> None:
        """Score the best set where that is due, or else a candidate, which takes its place where it
        is better.
        """
        if self.best_score is None:
            self.best_score = self._scored(self.best, score)
            return
        candidate = self._candidate()
        value = self._scored(candidate, score)
        if value > self.best_score:
            self.best = candidate
            self.best_score = value
            self.in_vain = 0
        else:
            self.in_vain += 1

    def _scored(self, plan: LayerPlan, score: Score) -> float:
        self.tried.append(plan)
        self.scores.append(score(plan))
        return self.scores[-1]

    def _candidate(self) -> LayerPlan:
        every = self.effort.suggest
        if every and len(self.tried) % every == 0:
            return self._suggested()
        return self._drawn()

    def _drawn(self) -> LayerPlan:
        count = len(self.inner)
        chosen = self.random.sample(range(2 * count), min(self.size, 2 * count - 1))
        attention = frozenset(self.inner[i] for i in chosen if i < count)
        return LayerPlan(attention, frozenset(self.inner[i - count] for i in chosen if i >= count))

    def _suggested(self) -> LayerPlan:
        """Return the random set with the highest upper confidence bound."""
        pool = [self._drawn() for _ in range(POOL)]
        tried = self._places(self.tried)
        mean, deviation = posterior(tried, torch.tensor(self.scores).double(), self._places(pool))
        return pool[int((mean + KAPPA * deviation).argmax())]

    def _places(self, plans: list[LayerPlan]) -> Tensor:
        """Return sets as points `[N, 2 layers]`, one coordinate a sublayer."""
        rows = [
            [i in p.skip_attention for i in self.inner] + [i in p.skip_mlp for i in self.inner]
            for p in plans
        ]
        return torch.tensor(rows, dtype=torch.float64)


def posterior(x: Tensor, y: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, at points `at [M, D]`, of a Gaussian process that saw
    scores `y [N]` at `x [N, D]`. All coordinates are 0 or 1.

    Its kernel falls with the squared distance over half the number of coordinates, its prior mean
    and variance are those of the scores.
    """
    scale = y.var(correction=0).clamp(min=NOISE)
    width = x.shape[1] / 2

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        distance = a.sum(-1)[:, None] + b.sum(-1) - 2 * a @ b.T  # of points of 0 and 1
        return scale * torch.exp(-distance / width)

    known = kernel(x, x) + NOISE * torch.eye(len(x), dtype=x.dtype)
    between = kernel(at, x)
    weights = torch.linalg.solve(known, between.T)  # [N, M]
    mean = y.mean() + (y - y.mean()) @ weights
    variance = scale - (between.T * weights).sum(0)
    return mean, variance.clamp(min=0).sqrt()


def odd_layers(layers: int) -> LayerPlan:
    """Return the set that a search starts from: both sublayers of every odd inner layer."""
    odd = frozenset(inner_layers(layers)[::2])
    return LayerPlan(odd, odd)
