"""Whether the order of decoders in speed is told from noise.

Two decoders may each differ from vanilla and not from one another. Decoder is compared with decoder
over the same prompts, each row of a setting with the next slower one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fspad_bench.benchmark.record import VANILLA, Sample
from fspad_bench.benchmark.speeds import NO_INTERVAL, named, pairs_of, speedup
from fspad_bench.benchmark.stats import Interval

Row = dict[str, Any]
POWER = (1.96 + 0.84) / 1.96  # half widths from 1 at which four of five samples tell at 95%
MOST_PROMPTS = 1_000_000  # more than any run asks


def add_orders(group: Sequence[Row], samples: Sequence[Sequence[Sample]]) -> None:
    """Add to each row of a setting its speedup over the next slower decoder, vanilla left out;
    `samples` are the rows' own.

    Decoders that were never interleaved, as in the cells of a sweep, have no order.
    """
    for row in group:
        row |= {"next_slower": None, **named("speedup_over_next", NO_INTERVAL)}
        row["prompts_to_tell"] = None
    ranked = [
        (row, own)
        for row, own in zip(group, samples, strict=True)
        if row["decoder"] != VANILLA and row["speedup"] is not None
    ]
    ranked.sort(key=lambda entry: _rank(entry[0]))
    for (faster, own), (slower, others) in pairwise(ranked):
        pairs = pairs_of(others, own)
        if not pairs:
            continue
        ratio = speedup(pairs, prefill=False)
        faster["next_slower"] = {name: slower[name] for name in ("decoder", "options")}
        faster |= named("speedup_over_next", ratio)
        faster["prompts_to_tell"] = prompts_to_tell(ratio, len({p.decoder.sample for p in pairs}))


def _rank(row: Row) -> tuple[float, str, str]:
    """Return what rows are ranked by: speedup, then names, so that equal ones have one order."""
    return -row["speedup"], row["decoder"], str(sorted(row["options"].items()))


def prompts_to_tell(ratio: Interval, prompts: int) -> int | None:
    """Return about how many prompts would tell a ratio from 1 with a power of 80%, to two digits.

    An interval narrows with the square root of their number. None where `prompts` told it, where
    the interval is unknown, and where no number of prompts that could be run would tell.
    """
    if math.isnan(ratio.low) or ratio.low > 1 or ratio.value == 1:
        return None
    half = math.log(ratio.high / ratio.low) / 2
    needed = prompts * (POWER * half / math.log(ratio.value)) ** 2
    if needed > MOST_PROMPTS:
        return None
    digits = max(0, math.floor(math.log10(needed)) - 1)
    return math.ceil(needed / 10**digits) * 10**digits
