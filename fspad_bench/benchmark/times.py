"""Times of a row: speeds, shares, memory, and how many tokens its steps committed.

What cannot be known is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fspad_bench.benchmark.record import Sample


def times(samples: Sequence[Sample], *, hidden: bool) -> dict[str, Any]:
    """Return times and memory; `hidden`: work was done before the decode clock, so that no figure
    of that clock is known.

    Shares are None where they are not known of every generation: a loop on a device and engines of
    others do not time their parts.
    """
    seconds = sum(sample.decode_seconds for sample in samples)
    clock = 0.0 if hidden else seconds
    prefill = sum(sample.prefill_seconds for sample in samples)
    tokens = sum(decoded(sample) + (sample.overshoot or 0) for sample in samples)
    return {
        "tokens_per_second": tokens / clock if clock and tokens else None,
        "time_to_first_token": prefill / len(samples) if seconds else None,
        "draft_share": _share([sample.draft_seconds for sample in samples], clock),
        "score_share": _share([sample.score_seconds for sample in samples], clock),
        "accepted": _histogram(samples),
        "peak_memory": max((s.peak_memory for s in samples if s.peak_memory), default=None),
    }


def _share(parts: Sequence[float | None], seconds: float) -> float | None:
    """Return a part's share of the decode seconds, None where it was not timed.

    Records before 2026-11-23 have 0 for a time that is not known.
    """
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not seconds or not sum(known):
        return None
    return sum(known) / seconds


def _histogram(samples: Sequence[Sample]) -> list[int]:
    """Return how many steps committed 1, 2, 3, ... tokens."""
    steps = [count for sample in samples for count in sample.committed]
    return [steps.count(count) for count in range(1, max(steps, default=0) + 1)]


def decoded(sample: Sample) -> int:
    """Return the tokens that steps made: all but the prefill's."""
    return max(0, len(sample.tokens) - 1)
