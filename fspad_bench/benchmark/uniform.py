"""The probability integral transform (PIT) of draws, its test, and the shift that it reveals.

- With the outcomes in descending order of p, u = F(before y) + U p(y) of a drawn y is uniform on
  (0, 1) if and only if y was drawn from p. A distribution distorted towards likely or unlikely
  outcomes gathers at one end of the scale.
- Each offset within a step is tested on its own, since an error of the bonus token shows only where
  bonus tokens stand, and one of deep nodes only where deep nodes stand.
- Nothing here imports torch: tables are made where it is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fspad_bench.benchmark.record import Pit

if TYPE_CHECKING:
    from torch import Tensor

    from fspad_bench.core.sampling import Dice

ALPHA = 1e-6  # of one test; a certification runs at most a hundred
POWER = 0.99
MIN_DRAWS = 100  # of a stratum
TAIL = 1e-3
PRECISE = ("float32", "float64")  # elsewhere rounding moves tokens across the edge of a cut


class Transformed(NamedTuple):
    """u of an emitted token, and its offset in the step that committed it."""

    u: float
    offset: int


class Uniformity(NamedTuple):
    """The smallest p-value of a test of u, where it was, and the shift that each stratum reveals.

    `counts` are the draws of each stratum, by offset; `shift` is of the smallest stratum that was
    tested.
    """

    p: float
    place: str
    counts: list[int]
    shift: float

    @property
    def holds(self) -> bool:
        return self.p >= ALPHA


def transform(p: Tensor, token: int, dice: Dice) -> float:
    """Return u of a token drawn from `p [V]`; probability 0 is at the end of the scale.

    Of equal probabilities the smaller token id comes first.
    """
    own = p[token]
    before = float(p[p > own].sum() + own * (p[:token] == own).sum())
    return min(1.0, before + dice.uniform() * float(own))


def offsets(committed: Sequence[int], tokens: int) -> list[int]:
    """Return the offset of each of a generation's tokens within its step.

    The prefill's token stands alone, and so does every token whose step is not known.
    """
    places = [0]
    for count in committed:
        places += range(count)
    return places + [0] * (tokens - len(places))


def detectable_shift(draws: int) -> float:
    """Return the Kolmogorov distance that this many draws reveal at ALPHA and POWER.

    The inequality of Dvoretzky, Kiefer and Wolfowitz bounds it.
    """
    return sum(math.sqrt(math.log(2 / rate) / (2 * draws)) for rate in (ALPHA, 1 - POWER))


def stratified(transformed: Sequence[Transformed]) -> dict[int, list[float]]:
    """Return u by offset.

    An offset with fewer than MIN_DRAWS tokens is pooled with the one before it.
    """
    strata: dict[int, list[float]] = {}
    pending: list[float] = []
    for offset in sorted({x.offset for x in transformed}, reverse=True):
        pending += [x.u for x in transformed if x.offset == offset]
        if len(pending) >= MIN_DRAWS or offset == 0:
            strata[offset] = pending
            pending = []
    return dict(sorted(strata.items()))


def uniformity(transformed: Sequence[Transformed], *, tail: bool = True) -> Uniformity | None:
    """Test every offset by Kolmogorov and Smirnov, and the far `tail` of all.

    None where no offset has MIN_DRAWS tokens.
    """
    strata = stratified(transformed)
    tested = {offset: us for offset, us in strata.items() if len(us) >= MIN_DRAWS}
    if not tested:
        return None
    p_values = _p_values(tested, transformed, tail=tail)
    place = min(p_values, key=lambda name: p_values[name])
    counts = [len(us) for us in strata.values()]
    shift = detectable_shift(min(map(len, tested.values())))
    return Uniformity(p_values[place], place, counts, shift)


def row_uniformity(pits: Iterable[Pit], dtype: str) -> Uniformity | None:
    """Test the pooled evidence of a row; None where there is too little of it."""
    transformed = [
        Transformed(u, offset) for pit in pits for u, offset in zip(pit.u, pit.offsets, strict=True)
    ]
    return uniformity(transformed, tail=dtype in PRECISE)


def _p_values(
    tested: dict[int, list[float]], transformed: Sequence[Transformed], *, tail: bool
) -> dict[str, float]:
    """Return the p-value of every offset, and that of the `tail` above 1 - TAIL."""
    from scipy import stats  # a table without sampled rows needs none of it

    p_values = {
        str(offset): float(stats.kstest(us, "uniform").pvalue) for offset, us in tested.items()
    }
    if tail:
        count = sum(x.u > 1 - TAIL for x in transformed)
        p_values["tail"] = float(stats.binomtest(count, len(transformed), TAIL).pvalue)
    return p_values
