"""Statistics of a run: intervals, one p-value, and how far two outputs agree.

- The prompt is the unit of resampling. Tokens of one output share its difficulty, and the two
  decoders of a pair share the prompt and the state of the machine, so only whole pairs are drawn.
- Every function is deterministic in its seed.
- numpy alone, but for Student's t: tables are made where torch is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

EXACT_UP_TO = 14  # differences: 2^14 sign patterns cost less than the Monte Carlo draws


class Cost(NamedTuple):
    """The time and the tokens of one generation."""

    seconds: float
    tokens: int


class Interval(NamedTuple):
    """An estimate and its interval, the bootstrap's percentiles widened for few prompts (see
    `_widening`); both ends are nan where n = 1.
    """

    value: float
    low: float
    high: float

    def within(self, least: float, most: float = math.inf) -> Interval:
        """Return it without what no figure can be: below `least` or above `most`."""
        if math.isnan(self.low):
            return self
        return Interval(self.value, max(self.low, least), min(self.high, most))


def speedup(
    reference: Sequence[Cost],
    decoder: Sequence[Cost],
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the reference's seconds per token over the decoder's, from sums; paired by position.

    The interval is a paired bootstrap over prompts. Raises ValueError where there are no pairs, the
    lists differ in length, or a cost is not above zero: a prompt without tokens has no speed, and
    its pair must be dropped.
    """
    value, estimates = speedup_draws(reference, decoder, draws=draws, seed=seed)
    return _interval(value, estimates, len(reference), level)


def speedup_draws(
    reference: Sequence[Cost], decoder: Sequence[Cost], *, draws: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the speedup, and that of each bootstrap draw, `[draws]`; raises as `speedup`.

    Equal numbers of prompts and seeds give the same draws, so speedups of the same prompts in
    several settings can be compared draw by draw.
    """
    pairs = np.hstack(_paired(reference, decoder))
    return _cost_ratio(pairs.mean(axis=0)), _cost_ratio(_resampled_means(pairs, draws, seed))


def ratio_of_mean_speeds(reference: Sequence[Cost], decoder: Sequence[Cost]) -> Interval:
    """Return Spec-Bench's speedup (Xia et al. 2024): mean tokens/s over the reference's mean.

    For comparison with that leaderboard only: a few very fast prompts weigh more than their share
    of the time. Raises ValueError as `speedup` does.
    """
    old, new = _paired(reference, decoder)
    speeds = np.column_stack([new[:, 1] / new[:, 0], old[:, 1] / old[:, 0]])
    return ratio_interval(speeds.tolist())


def ratio_interval(
    parts: Sequence[tuple[float, float]], *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Return the sum of the first over the sum of the second, one pair a prompt: tokens per step.

    Raises ValueError for no pairs, one that is not finite, or a second part that is not above zero.
    """
    rows = _finite(parts)
    if not (rows[:, 1] > 0).all():
        raise ValueError("a prompt without a step has no ratio")
    means = _resampled_means(rows, draws, seed)
    value = rows[:, 0].sum() / rows[:, 1].sum()
    return _interval(value, means[:, 0] / means[:, 1], len(rows), level)


def mean_of_groups(
    values: Sequence[tuple[str, float]],
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the mean over groups of the means of their values, one (group, value) a prompt.

    Prompts are drawn from all groups; a group that a draw lacks is left out of that draw's mean.
    Raises ValueError for no values or one that is not finite.
    """
    numbers = _finite([value for _, value in values])
    names = sorted({group for group, _ in values})
    member = np.array([[group == name for name in names] for group, _ in values], dtype=float)
    parts = np.hstack([member, member * numbers[:, None]])
    estimates = _mean_of_present(_resampled_means(parts, draws, seed))
    return _interval(_mean_of_present(parts.mean(axis=0)), estimates, len(numbers), level)


def sign_flip_p(differences: Sequence[float], *, draws: int = 20000, seed: int = 0) -> float:
    """Return the one-sided p-value that the mean of `differences`, one a prompt, is above 0.

    Under the null hypothesis each sign is a coin's. All 2^n patterns for n <= 14; beyond, (1 + k) /
    (1 + draws) for the k of `draws` random ones that reach the observed mean, which is never 0
    (Phipson and Smyth 2010). Raises ValueError for no differences or one that is not finite.
    """
    d = _finite(differences)
    n = len(d)
    if n <= EXACT_UP_TO:
        return float(np.mean(_reaches(np.arange(2**n)[:, None] >> np.arange(n) & 1, d)))
    flipped = np.random.default_rng(seed).integers(2, size=(draws, n), dtype=np.int8)
    return float((1 + np.count_nonzero(_reaches(flipped, d))) / (1 + draws))


def agreement(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Return the tokens (or characters) before the first divergence, the common prefix's length."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _paired(reference: Sequence[Cost], decoder: Sequence[Cost]) -> tuple[np.ndarray, np.ndarray]:
    if len(reference) != len(decoder):
        raise ValueError(f"costs must be paired: {len(reference)} against {len(decoder)}")
    return _costs(reference, "reference"), _costs(decoder, "decoder")


def _costs(costs: Sequence[Cost], name: str) -> np.ndarray:
    """Return [n, 2]: seconds, tokens."""
    for i, (seconds, tokens) in enumerate(costs):
        if not (0 < seconds < math.inf and tokens > 0):
            raise ValueError(f"{name}[{i}] is {seconds} s for {tokens} tokens: drop this pair")
    return _finite(costs)


def _finite(values: Sequence[Any]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("no values to estimate from")
    if not np.isfinite(array).all():
        raise ValueError(f"not a finite number: {array[~np.isfinite(array)][0]}")
    return array


def _cost_ratio(rows: np.ndarray) -> np.ndarray:
    """Return [...] of [..., 4]: reference seconds and tokens, decoder seconds and tokens.

    Means serve as well as sums.
    """
    reference_seconds, reference_tokens, seconds, tokens = np.moveaxis(rows, -1, 0)
    return (reference_seconds / reference_tokens) / (seconds / tokens)


def _mean_of_present(parts: np.ndarray) -> np.ndarray:
    """Return [...] of [..., 2g]: of g groups the shares of prompts, then the shares' sums.

    Groups without a prompt do not count.
    """
    shares, sums = np.split(parts, 2, axis=-1)
    present = shares > 0
    means = np.divide(sums, shares, out=np.zeros_like(sums), where=present)
    return means.sum(axis=-1) / present.sum(axis=-1)


def _resampled_means(rows: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return [draws, k]: column means of n whole rows of [n, k], drawn with replacement."""
    counts = _counts(len(rows), draws, seed)
    return np.column_stack([counts @ column for column in rows.T]) / len(rows)


@lru_cache(maxsize=4)
def _counts(n: int, draws: int, seed: int) -> np.ndarray:
    """Return [draws, n]: how often each draw takes each of n rows, shared by a table's figures."""
    picks = np.random.default_rng(seed).integers(n, size=(draws, n))
    of_draws = picks + n * np.arange(draws)[:, None]
    counts = np.bincount(of_draws.ravel(), minlength=draws * n).reshape(draws, n)
    return counts.astype(np.float64)


def _interval(value: np.ndarray, estimates: np.ndarray, n: int, level: float) -> Interval:
    if n == 1:  # every resample is the sample itself: its width of zero would mislead
        return Interval(float(value), math.nan, math.nan)
    ends = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    low, high = (_widened(float(value), float(end), _widening(n, level)) for end in ends)
    return Interval(float(value), low, high)


@lru_cache
def _widening(n: int, level: float) -> float:
    """Return by how much a percentile interval of n prompts is too narrow.

    Draws have the spread of n values around their own mean, so they miss a factor of sqrt(n / (n -
    1)) and what Student's t has beyond a normal distribution: 1.58 at n = 5, 1.12 at 16, 1.01 at
    240.
    """
    from scipy import special

    t = special.stdtrit(n - 1, (1 + level) / 2)
    return float(t / NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(n / (n - 1)))


def widened(value: float, end: float, n: int, level: float) -> float:
    """Return an end of a percentile interval of n prompts where a wide enough one ends."""
    return _widened(value, end, _widening(n, level))


def _widened(value: float, end: float, factor: float) -> float:
    """Move an end of an interval away from the estimate: by ratio, where both are above 0."""
    if value > 0 and end > 0:
        return value * (end / value) ** factor
    return value + (end - value) * factor


def _reaches(flipped: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return [m]: whether the mean with the signs of a row of [m, n] flipped reaches the observed.

    It does exactly where the flipped differences sum to at most 0. The slack keeps ties, which
    equal differences make common, from being broken by rounding.
    """
    return flipped @ d <= 1e-12 * np.abs(d).sum()
