"""The probability integral transform of draws, and the shift that a number of draws reveals.

With the outcomes in descending order of p, u = F(before y) + U p(y) of a drawn y is uniform on (0,
1) if and only if y was drawn from p. A distribution distorted towards likely or unlikely outcomes
gathers at one end of the scale.
"""

from __future__ import annotations

import math

from torch import Tensor

from fspad_bench.core.sampling import Dice

ALPHA = 1e-6  # of one test; a certification runs at most a hundred
POWER = 0.99


def transform(p: Tensor, token: int, dice: Dice) -> float:
    """Return u of a token drawn from `p [V]`; probability 0 is at the end of the scale."""
    order = p.sort(descending=True, stable=True)
    place = int((order.indices == token).nonzero())
    before = float(order.values[:place].sum())
    return min(1.0, before + dice.uniform() * float(order.values[place]))


def detectable_shift(draws: int) -> float:
    """Return the Kolmogorov distance that this many draws reveal at ALPHA and POWER.

    The inequality of Dvoretzky, Kiefer and Wolfowitz bounds it.
    """
    return sum(math.sqrt(math.log(2 / rate) / (2 * draws)) for rate in (ALPHA, 1 - POWER))
