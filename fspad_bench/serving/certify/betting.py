"""Tests by betting: valid however often one looks, with one error over all of them.

A test's wealth starts at 1 and multiplies at each round of answers. Where nothing is wrong its mean
never exceeds 1, so it ever reaches 1 / alpha with probability alpha at most (Ville 1939).

- Two samples: for independent x and y of one distribution and any function d into (-1, 1) that is
  fixed before they are seen, (1 + d(x)) (1 - d(y)) has the mean (1 + mu) (1 - mu) <= 1, with mu the
  mean of d (after Turner, Ly and Grünwald 2021). No distribution is assumed, and none approximated.
- What is bet is learned from earlier rounds alone. How fast to learn is not known beforehand: the
  wealth is the mean over several strengths of the prior that nothing is wrong.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

STRENGTHS = np.array([1.0, 4.0, 16.0, 64.0, 256.0])  # of the prior, in pairs seen
POWER_Z = 1.2816  # 90% of a normal distribution lie above minus this

Drawn = tuple[Hashable, Hashable]  # the context of a draw, and what was drawn
Families = Sequence[Sequence[Drawn]]


class Group(NamedTuple):
    """Draws of one distribution: how many pairs, over how many outcomes in effect."""

    pairs: int
    outcomes: float


class Wealth:
    """The wealth of one test: its logarithm now and at its highest, as a mean over strategies."""

    def __init__(self, strategies: int = len(STRENGTHS)) -> None:
        self.logs = np.zeros(strategies)
        self.highest = 0.0

    @property
    def log(self) -> float:
        return float(logsumexp(self.logs) - math.log(len(self.logs)))

    def close_round(self) -> None:
        """Count the wealth at the end of a round, the only moments at which it may be looked at."""
        self.highest = max(self.highest, self.log)

    @property
    def most(self) -> float:
        """The largest logarithm that the draws so far could have made."""
        return math.inf

    def rejects(self, alpha: float) -> bool:
        return self.highest >= -math.log(alpha)


class TwoSamples(Wealth):
    """Do both sides draw alike in every context?

    Within a round the draws of a context are paired in order; those without a partner teach the
    next rounds, and are not bet on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.served: defaultdict[Hashable, Counter[Hashable]] = defaultdict(Counter)
        self.plain: defaultdict[Hashable, Counter[Hashable]] = defaultdict(Counter)
        self.pairs: Counter[Hashable] = Counter()

    def round(self, served: Iterable[Drawn], plain: Iterable[Drawn]) -> None:
        """Bet on the draws of a round, then learn from them."""
        ours = by_context(served)
        theirs = by_context(plain)
        for context in ours.keys() & theirs.keys():
            self._bet(context, ours[context], theirs[context])
        for counts, draws in ((self.served, ours), (self.plain, theirs)):
            for context, outcomes in draws.items():
                counts[context].update(outcomes)
        self.close_round()

    def _bet(
        self, context: Hashable, served: Sequence[Hashable], plain: Sequence[Hashable]
    ) -> None:
        if context not in self.served and context not in self.plain:
            return  # nothing is known, and nothing bet
        pairs = min(len(served), len(plain))
        self.pairs[context] += pairs
        for sign, outcomes in ((1, served[:pairs]), (-1, plain[:pairs])):
            for outcome, times in Counter(outcomes).items():
                self.logs += times * np.log1p(sign * self._lean(context, outcome))

    def _lean(self, context: Hashable, outcome: Hashable) -> np.ndarray:
        """Return d of an outcome, [strengths]: how much more often the served side drew it."""
        ours = self.served[context][outcome]
        theirs = self.plain[context][outcome]
        return (ours - theirs) / (ours + theirs + 2 * STRENGTHS)

    def groups(self) -> list[Group]:
        """Return what was bet on, by context."""
        return [
            Group(pairs, effective_outcomes(self.served[context] + self.plain[context]))
            for context, pairs in self.pairs.items()
        ]


class Chains(Wealth):
    """Can one tell from a whole answer which side gave it?

    An answer is given by families of draws, such as tokens after none, one or two others. Each
    family's likelihood ratio of a whole answer is learned from earlier rounds, with several priors
    that both sides draw alike; each is a strategy of its own.
    """

    PRIORS = np.array([16.0, 256.0, 4096.0])  # in draws of a context
    LARGEST = 0.95  # of a lean: one answer never costs everything

    def __init__(self, families: int) -> None:
        super().__init__(families * len(self.PRIORS))
        self.served: Counter[Hashable] = Counter()
        self.plain: Counter[Hashable] = Counter()
        self.pairs = 0  # of answers that were bet on
        self.draws: Counter[int] = Counter()  # in these, by family

    @property
    def most(self) -> float:
        return 2 * self.pairs * math.log1p(self.LARGEST)

    def round(self, served: Sequence[Families], plain: Sequence[Families]) -> None:
        """Bet on pairs of answers, then learn from them."""
        if self.served or self.plain:
            for ours, theirs in zip(served, plain, strict=False):
                self._bet(ours, theirs)
        for counts, answers in ((self.served, served), (self.plain, plain)):
            for answer in answers:
                for family, draws in enumerate(answer):
                    counts.update((family, context) for context, _ in draws)
                    counts.update((family, context, outcome) for context, outcome in draws)
        self.close_round()

    def _bet(self, served: Families, plain: Families) -> None:
        self.logs += np.log1p(self._lean(served)) + np.log1p(-self._lean(plain))
        self.pairs += 1
        for family, draws in enumerate(zip(served, plain, strict=True)):
            self.draws[family] += sum(map(len, draws))

    def _lean(self, answer: Families) -> np.ndarray:
        """Return d of an answer, [strategies]."""
        scores = [self._score(family, draws) for family, draws in enumerate(answer)]
        return np.clip(np.tanh(np.concatenate(scores) / 2), -self.LARGEST, self.LARGEST)

    def _score(self, family: int, draws: Sequence[Drawn]) -> np.ndarray:
        """Return the logarithm of a family's likelihood ratio, [priors]."""
        known = []
        for context, outcome in draws:
            ours = self.served[family, context, outcome]
            theirs = self.plain[family, context, outcome]
            if ours or theirs:
                totals = self.served[family, context], self.plain[family, context]
                known.append((ours, theirs, *totals))
        if not known:
            return np.zeros(len(self.PRIORS))
        a, b, all_a, all_b = np.array(known, dtype=float).T[:, :, None]  # [draws, 1] each
        prior = self.PRIORS * (a + b) / (all_a + all_b)
        ratio = (a + prior) * (all_b + self.PRIORS) / ((b + prior) * (all_a + self.PRIORS))
        return np.log(ratio).sum(axis=0)

    def group(self, family: int = 0) -> list[Group]:
        """Return what was bet on in a family, its contexts aside."""
        counts: Counter[Hashable] = Counter()
        for side in (self.served, self.plain):
            for key, n in side.items():
                if isinstance(key, tuple) and len(key) == 3 and key[0] == family:
                    counts[key[2]] += n
        pairs = self.draws[family] // 2
        return [Group(pairs, effective_outcomes(counts))] if pairs else []


def by_context(draws: Iterable[tuple[Hashable, object]]) -> dict[Hashable, list]:
    """Return draws by their context, in order."""
    found: defaultdict[Hashable, list] = defaultdict(list)
    for context, outcome in draws:
        found[context].append(outcome)
    return found


def effective_outcomes(counts: Counter[Hashable]) -> float:
    """Return the exponential of the entropy: K for K outcomes that are equally likely."""
    p = np.array([count for count in counts.values() if count], dtype=float)
    p /= p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def detectable(groups: Iterable[Group], alpha: float, strategies: int = len(STRENGTHS)) -> float:
    """Return the least total variation that these draws reveal with 90% power, 1 where none is.

    `strategies`: how many share the wealth. Every group's distribution is shifted by as much,
    evenly: the hardest shift of its size. The growth of the wealth, the cost of learning and their
    spread are those of a normal approximation, which holds within 10% of the power.
    """
    known = np.array([group for group in groups if group.pairs], dtype=float).reshape(-1, 2)
    needed = math.log(strategies) - math.log(alpha)
    low = 0.0
    high = 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        if _is_revealed(known[:, 0], known[:, 1], middle, needed):
            high = middle
        else:
            low = middle
    return high


def _is_revealed(n: np.ndarray, outcomes: np.ndarray, shift: float, needed: float) -> bool:
    """Whether `n` pairs a group reach the `needed` logarithm of the wealth with 90% power.

    After t pairs the lean is t / (t + m) of the true one, with noise of variance K / 2t; the true
    one gains `a_pair`, about the square of the shift.
    """
    a_pair = (1 + shift) * math.log1p(shift) + (1 - shift) * math.log1p(-shift)
    for strength in STRENGTHS:
        m = strength * outcomes
        learned = np.log((n + m) / m)
        growth = a_pair * n**2 / (n + m)
        cost = outcomes / 2 * (learned - n / (n + m))
        signal = shift**2 * (n - 2 * m * learned + m * n / (n + m))
        deviation = math.sqrt(2 * float((signal + cost).sum()))
        if float((growth - cost).sum()) - POWER_Z * deviation >= needed:
            return True
    return False
