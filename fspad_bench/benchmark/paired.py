"""Whether a figure differs between two runs over the same prompts, and what difference would show.

- The prompt is the unit: both runs answered it, so only differences within a prompt count.
- A figure is a ratio of sums over prompts, such as tokens over steps. Its logarithm is compared, so
  that twice as fast and half as fast are equally far from 1.
- The standard error is the jackknife's over prompts. The test is Student's t with one degree of
  freedom less than there are prompts, because a bootstrap of few prompts is too narrow.
- numpy alone, but for Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ALPHA = 0.05  # of a whole comparison
POWER = 0.9
ROUNDING = 1e-12  # of a sum of logarithms


class Change(NamedTuple):
    """The logarithm of a figure's ratio, B over A, and its standard error.

    `freedom`: degrees of freedom of the error, which `prompts` decide.
    """

    log_ratio: float
    error: float
    prompts: int
    freedom: float

    @property
    def ratio(self) -> float:
        return math.exp(self.log_ratio)

    @property
    def is_none(self) -> bool:
        """Whether nothing changed on any prompt, which needs no test."""
        return abs(self.log_ratio) <= ROUNDING and self.error <= ROUNDING

    @property
    def p(self) -> float:
        """The two-sided p-value of no change."""
        from scipy import special

        if self.is_none:
            return 1.0
        if self.error <= ROUNDING:
            return 0.0
        t = abs(self.log_ratio) / self.error
        return float(2 * special.stdtr(self.freedom, -t))

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float]:
        """Return the interval of the ratio."""
        half = self._t((1 + level) / 2) * self.error
        return math.exp(self.log_ratio - half), math.exp(self.log_ratio + half)

    def least(self, tests: int, floor: float = 0.0) -> float:
        """Return the smallest change that is found with probability `POWER` among so many tests.

        As a share: 0.04 is 4%. `floor` is the change of the logarithm that counts as noise.
        """
        bound = max(self._t(1 - ALPHA / (2 * tests)) * self.error, floor)
        return math.expm1(bound + self._t(POWER) * self.error)

    def _t(self, level: float) -> float:
        from scipy import special

        return float(special.stdtrit(self.freedom, level))


def change(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], powers: Sequence[int]
) -> Change:
    """Return the change of a figure from run A to run B.

    `a` and `b` hold a line a prompt, paired by position, with the parts of the figure. `powers`
    holds +1 for a part whose sum stands above the line and -1 for one below it. Raises ValueError
    for fewer than two prompts and for a part that is not above zero.
    """
    parts = np.hstack([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)])
    n = len(parts)
    if n < 2:
        raise ValueError(f"{n} prompts have no spread")
    if not (np.isfinite(parts).all() and (parts > 0).all()):
        raise ValueError("a part of a ratio that is not above zero")
    signs = np.array([*(-power for power in powers), *powers])
    sums = parts.sum(axis=0)
    whole = np.log(sums) @ signs
    without = np.log(sums - parts) @ signs  # [n]: the figure without each prompt
    error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    return Change(float(whole), error, n, n - 1)


def pooled(changes: Sequence[Change]) -> Change:
    """Return the mean change of several tasks of other prompts, each weighing the same.

    The degrees of freedom are Satterthwaite's. Raises ValueError for no changes.
    """
    if not changes:
        raise ValueError("no changes to pool")
    variances = [change.error**2 for change in changes]
    spread = sum(v**2 / c.freedom for v, c in zip(variances, changes, strict=True))
    freedom = sum(variances) ** 2 / spread if spread else sum(c.freedom for c in changes)
    return Change(
        sum(change.log_ratio for change in changes) / len(changes),
        math.sqrt(sum(variances)) / len(changes),
        sum(change.prompts for change in changes),
        freedom,
    )


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979), in the order given.

    Where no hypothesis is false, one of them is below 0.05 with probability at most 0.05.
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def count_p(right_a: int, total_a: int, right_b: int, total_b: int) -> float:
    """Return the two-sided p-value of Fisher's exact test that two shares are equal.

    It takes the two for independent, which for the same prompts is cautious.
    """
    from scipy import stats

    table = [[right_a, total_a - right_a], [right_b, total_b - right_b]]
    return float(stats.fisher_exact(table).pvalue)
