"""The batch size at which speculation stops to pay.

- The more requests share a forward, the more each drafted node costs: a forward of a few rows costs
  what reading the weights does, one of many rows what multiplying does.
- The speedup between two measured sizes is interpolated, its logarithm over that of the size. The
  interval is a bootstrap over prompts, with the same draws at all sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fspad_bench.benchmark.stats import Cost, Interval, speedup_draws

Pair = tuple[Sequence[Cost], Sequence[Cost]]
LEVEL = 0.95


def break_even(pairs: Mapping[int, Pair]) -> Interval:
    """Return the smallest batch size, a fraction, from which on a decoder is slower than vanilla.

    `pairs`: by batch size, vanilla's and the decoder's costs of the same prompts. `inf` where it is
    faster at every size measured; the smallest size where it is nowhere. Both ends are nan for one
    prompt.
    """
    sizes = sorted(pairs)
    measured = [speedup_draws(*pairs[size]) for size in sizes]
    value = crossing(sizes, [float(speedup) for speedup, _ in measured])
    if len(pairs[sizes[0]][0]) == 1:
        return Interval(value, math.nan, math.nan)
    draws = np.column_stack([draws for _, draws in measured])
    crossings = sorted(crossing(sizes, draw) for draw in draws.tolist())
    last = len(crossings) - 1
    tail = (1 - LEVEL) / 2
    low, high = (crossings[round(part * last)] for part in (tail, 1 - tail))
    return Interval(value, low, high)


def crossing(sizes: Sequence[int], speedups: Sequence[float]) -> float:
    """Return the first size at which speedups fall below 1, `inf` where none does."""
    for number, speedup in enumerate(speedups):
        if speedup >= 1:
            continue
        if number == 0:
            return float(sizes[0])
        before = math.log(speedups[number - 1])
        share = before / (before - math.log(speedup))
        return float(sizes[number - 1] * (sizes[number] / sizes[number - 1]) ** share)
    return math.inf


def last_useful(size: float, largest: int) -> int | None:
    """Return the largest whole batch size below a break-even; None where it was not reached."""
    return None if size > largest else max(0, math.ceil(size) - 1)
