"""Text that loops is not text: a small model that repeats itself flatters whoever copies."""

from __future__ import annotations

from collections.abc import Sequence

TAIL = 30  # tokens at the end of an output, at least
LONGEST_PERIOD = 20


def loops(tokens: Sequence[int]) -> bool:
    """Whether the last `TAIL` or more tokens repeat with a period of at most `LONGEST_PERIOD`."""
    tail = list(tokens[-TAIL:])
    return len(tail) == TAIL and any(
        tail[period:] == tail[:-period] for period in range(1, LONGEST_PERIOD + 1)
    )
