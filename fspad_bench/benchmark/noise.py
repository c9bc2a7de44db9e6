"""The noise floor of a setting: vanilla measured twice, each turn interleaved as any decoder's.

The speedup of vanilla's second turn over its first (A/A) is 1 but for noise. How far from 1 its
interval reaches is the floor, below which this machine and these prompts tell no speedup from none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fspad_bench.benchmark.record import VANILLA
from fspad_bench.benchmark.speeds import Pair, named, speedup
from fspad_bench.benchmark.stats import Interval

Row = dict[str, Any]


def add_noise(row: Row, aa: Sequence[Pair]) -> None:
    """Add to a row its A/A figures, those of the rounds that it took part in, and whether its
    speedup is told from noise.
    """
    ratio = speedup(aa, prefill=False)
    figures: Row = {
        **named("aa", ratio),
        "aa_divergences": sum(pair.differs for pair in aa) if aa else None,
        "noise_floor": floor(ratio),
    }
    row |= figures
    row["told_from_noise"] = _told(row)


def floor(aa: Interval) -> float | None:
    """Return how far from 1 the interval of an A/A ratio reaches; None without an interval."""
    reach = max(abs(1 - aa.low), abs(aa.high - 1))
    return None if math.isnan(reach) else reach


def _told(row: Row) -> bool | None:
    """Return whether a row's whole interval lies beyond the floor around 1.

    None for vanilla itself, and where either interval is unknown.
    """
    if row["decoder"] == VANILLA or None in (row["noise_floor"], row["speedup_low"]):
        return None
    slower = row["speedup_high"] < 1 - row["noise_floor"]
    faster = row["speedup_low"] > 1 + row["noise_floor"]
    return bool(slower or faster)
