"""A language model of numbers alone: the logits after a text depend on its last two tokens.

- A target's logits are normal variates from a hash of those two tokens; a draft's are the target's
  with noise of its own added. Token 0 ends a text.
- A distribution is a plain list of probabilities, cut and scaled as `lossless.choice` defines it.
- Plain Python: for two dozen tokens it is many times as fast as tensors.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from fspad_bench.core.sampling import Sampler
from fspad_bench.lossless import choice

END = 0
VOCABULARY = 24
SPREAD = 1.6  # of logits
NEVER = -1e9


@dataclass
class Markov:
    """Logits over `vocabulary` tokens; `noise` is what a draft adds to those of `target`.

    `end` is added to the logit of the token that ends a text: the lower, the longer texts get.
    """

    salt: int = 0
    vocabulary: int = VOCABULARY
    end: float = -1.5
    target: Markov | None = None
    noise: float = 1.0
    rows: dict[tuple[int, ...], list[float]] = field(default_factory=dict)

    def logits(self, text: Sequence[int]) -> list[float]:
        """Return the logits `[V]` after a text."""
        pair = tuple(text[-2:])
        if pair not in self.rows:
            self.rows[pair] = self._row(pair)
        return self.rows[pair]

    def _row(self, pair: tuple[int, ...]) -> list[float]:
        dice = random.Random(f"{self.salt} {pair}")
        row = [dice.gauss(0, 1) for _ in range(self.vocabulary)]
        if self.target is not None:
            own = self.target.logits(pair)
            return [logit + self.noise * x for logit, x in zip(own, row, strict=True)]
        row = [SPREAD * x for x in row]
        row[END] += self.end
        return row


@dataclass(frozen=True)
class Penalties:
    """Penalties as vLLM defines them: repetition sees prompt and output, the others the output."""

    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0

    @property
    def neutral(self) -> bool:
        return (self.presence, self.frequency, self.repetition) == (0.0, 0.0, 1.0)

    def applied(
        self, logits: Sequence[float], prompt: Sequence[int], output: Sequence[int]
    ) -> list[float]:
        """Return the logits `[V]` after the penalties."""
        row = list(logits)
        for token in {*prompt, *output}:
            row[token] *= self.repetition if row[token] < 0 else 1 / self.repetition
        for token in set(output):
            row[token] -= self.presence + self.frequency * output.count(token)
        return row


class Distributions:
    """The distributions of one model under one request's settings, each computed once."""

    def __init__(self, model: Markov) -> None:
        self.model = model
        self.known: dict[tuple[object, ...], list[float]] = {}

    def after(self, text: Sequence[int], sampler: Sampler, *, wrong_order: bool) -> list[float]:
        """Return the probabilities `[V]` of the next token after a text."""
        cuts = (sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p)
        key = (*text[-2:], *cuts, wrong_order)
        if key not in self.known:
            self.known[key] = distribution(self.model.logits(text), sampler, wrong_order)
        return self.known[key]


def distribution(logits: Sequence[float], sampler: Sampler, wrong_order: bool) -> list[float]:
    """Return the processed probabilities `[V]`; with `wrong_order` the temperature comes last.

    Top-p is then taken of all the mass and not of what top-k leaves.
    """
    if not wrong_order or sampler.greedy:
        return choice.distribution(logits, sampler)
    kept = set(choice.kept(logits, sampler.top_k, 1.0))
    kept &= set(choice.kept(logits, 0, sampler.top_p, sampler.min_p))
    row = [x if token in kept else NEVER for token, x in enumerate(logits)]
    return softmax([x / sampler.temperature for x in row])


def softmax(logits: Sequence[float]) -> list[float]:
    """Return the probabilities of logits."""
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def exponentials(seed: int, position: int, purpose: str, size: int) -> list[float]:
    """Return independent exponential variates, a function of the arguments alone."""
    dice = random.Random(f"{seed} {position} {purpose}")
    return [-math.log1p(-dice.random()) for _ in range(size)]


def race(weights: Sequence[float], clocks: Sequence[float]) -> int:
    """Draw an index in proportion to the weights: the one whose exponential clock rings first."""
    times = [
        (clock / weight, index)
        for index, (weight, clock) in enumerate(zip(weights, clocks, strict=True))
        if weight > 0
    ]
    return min(times)[1]
