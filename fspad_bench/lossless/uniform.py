"""From a draw to a number that is uniform if and only if the law is right, and what may be concluded from many.

With the outcomes in descending order of p, u = F(before y) + U p(y): distortions towards the likely or the unlikely
gather at an end of the scale.
"""

from __future__ import annotations

import math

from torch import Tensor

from fspad_bench.core.sampling import Dice

ALPHA = 1e-6  # of one test; a certification has at most a hundred
POWER = 0.99


def transform(law: Tensor, token: int, dice: Dice) -> float:
    """u of one token; where its probability is 0, the end of the scale."""
    order = law.sort(descending=True, stable=True)
    place = int((order.indices == token).nonzero())
    below = float(order.values[:place].sum())
    return min(1.0, below + dice.uniform() * float(order.values[place]))


def shift_seen(draws: int) -> float:
    """The Kolmogorov distance that this many draws show, by the inequality of Dvoretzky, Kiefer and Wolfowitz."""
    return sum(math.sqrt(math.log(2 / rate) / (2 * draws)) for rate in (ALPHA, 1 - POWER))
