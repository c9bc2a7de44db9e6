"""The batch size at which speculation stops paying off.

- The more requests share a forward, the more each drafted node costs: a forward of a few rows costs
  what reading the weights does, one of many rows what multiplying does.
- The speedup between two measured sizes is interpolated, its logarithm over that of the size. The
  interval is a bootstrap over prompts, with the same draws at all sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fspad_bench.benchmark.stats import Cost, Interval, speedup_draws, widened

Pair = tuple[Sequence[Cost], Sequence[Cost]]
LEVEL = 0.95


def break_even(pairs: Mapping[int, Pair]) -> Interval:
    """Return the smallest batch size, a fraction, from which on a decoder is slower than vanilla.

    `pairs`: by batch size, vanilla's and the decoder's costs of the same prompts. `inf` where it is
    not slower at the largest size measured; the smallest size where it is slower at all. Both ends
    are nan where a size has one prompt.
    """
    sizes = sorted(pairs)
    measured = [speedup_draws(*pairs[size]) for size in sizes]
    value = crossing(sizes, [float(speedup) for speedup, _ in measured])
    if any(len(vanilla) == 1 for vanilla, _ in pairs.values()):
        return Interval(value, math.nan, math.nan)
    draws = np.column_stack([draws for _, draws in measured])
    crossings = sorted(crossing(sizes, draw) for draw in draws.tolist())
    last = len(crossings) - 1
    tail = (1 - LEVEL) / 2
    prompts = min(len(vanilla) for vanilla, _ in pairs.values())
    ends = [crossings[round(part * last)] for part in (tail, 1 - tail)]
    if math.isfinite(value):
        ends = [widened(value, end, prompts, LEVEL) if math.isfinite(end) else end for end in ends]
    low, high = ends
    return Interval(value, low, high)


def crossing(sizes: Sequence[int], speedups: Sequence[float]) -> float:
    """Return the size from which on speedups are below 1, `inf` where the last one is not."""
    slower = len(sizes)
    while slower and speedups[slower - 1] < 1:
        slower -= 1
    if slower == len(sizes):
        return math.inf
    if slower == 0:
        return float(sizes[0])
    before = math.log(speedups[slower - 1])
    share = before / (before - math.log(speedups[slower]))
    return float(sizes[slower - 1] * (sizes[slower] / sizes[slower - 1]) ** share)


def last_useful(size: float, largest: int) -> int | None:
    """Return the largest whole batch size below a break-even; None where it was not reached."""
    return None if size > largest else max(0, math.ceil(size) - 1)
