"""Where tokens lie in their server's own distribution: the probability integral transform.

- With the tokens in descending order of p, u = F(before y) + U p(y) is uniform if y was drawn from
  p. A list of the likeliest alternatives is enough: a token outside of it gets a uniform number
  above the list's mass.
- A server may return log-probabilities before temperature, cuts and penalties, and does not return
  the token that ends a text: then u of a right engine is not uniform, but has one distribution
  with speculation and without. So both sides' are compared, and none with the uniform.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from math import isfinite

from fspad_bench.serving.certify.observation import Observation

DIGITS = 4  # of u: far below a bin
HALFWAY = 1.5  # of distances at the temperature 0.5 over those at 1: 1 if raw, 2 if not


def is_raw(hot: Sequence[Observation], cold: Sequence[Observation]) -> bool:
    """Whether log-probabilities ignore the temperature, from first tokens at 1 and at 0.5.

    The distance of two tokens is the same in both if they do, and twice as large at 0.5 if not.
    """
    gaps = [_gaps(*answers) for answers in zip(hot, cold, strict=True)]
    at_hot = sum(gap for gap, _ in gaps)
    at_cold = sum(gap for _, gap in gaps)
    return at_cold <= HALFWAY * at_hot


def _gaps(hot: Observation, cold: Observation) -> tuple[float, float]:
    """Return the distance of the likeliest token from the unlikeliest that both list, in each."""
    a = hot.top[0] if hot.top else {}
    b = cold.top[0] if cold.top else {}
    both = [token for token in a.keys() & b.keys() if isfinite(a[token]) and isfinite(b[token])]
    if not both:
        return 0.0, 0.0
    first = max(both, key=lambda token: a[token])
    last = min(both, key=lambda token: a[token])
    return a[first] - a[last], b[first] - b[last]


def transform(logs: Mapping[int, float], token: int, uniform: float) -> float:
    """Return u of a drawn token by the log-probabilities of the likeliest."""
    own = logs.get(token)
    if own is None:
        mass = min(1.0, sum(map(math.exp, logs.values())))
        return mass + uniform * (1 - mass)
    before = sum(
        math.exp(p) for other, p in logs.items() if p > own or (p == own and other < token)
    )
    return min(1.0, before + uniform * math.exp(own))


def transformed(reply: Observation, dice: random.Random) -> Observation:
    """Return a reply with u of its tokens in place of their alternatives."""
    if reply.top is None:
        return reply
    u = tuple(
        round(transform(top, token, dice.random()), DIGITS)
        for token, top in zip(reply.tokens, reply.top, strict=False)
        if top
    )
    return reply._replace(top=None, u=u)
