"""A record small enough to compute on paper.

Vanilla makes 9 tokens in 8 steps of 100 ms, fast in 3 steps of 200 ms: the prefill's token and 8
that steps committed. A step of fast spends 60 ms more on drafting, 20 ms more on its forward and 20
ms more on the rest.
"""

from dataclasses import replace

from by_hand import FAST, VANILLA, records, sample

SLOW = replace(VANILLA, decoder="slow", options={"depth": 1})
PLAIN = sample(
    VANILLA,
    "a",
    9,
    0.8,
    committed=[1] * 8,
    drafted=[0] * 8,
    forwards=8,
    draft_seconds=0.0,
    score_seconds=0.64,
    verify_seconds=0.08,
)
DRAFTED = sample(
    FAST,
    "a",
    9,
    0.6,
    committed=[3, 2, 3],
    drafted=[4, 4, 6],
    depths=[2, 2, 4],
    ranks=[[0, 1], [0], [1, 0]],
    refused=[0, 2, 3],
    forwards=3,
    draft_seconds=0.18,
    score_seconds=0.3,
    verify_seconds=0.06,
)
OTHER = sample(  # four steps of 100 ms, its draft takes 20 ms of each
    SLOW,
    "a",
    9,
    0.4,
    committed=[2] * 4,
    drafted=[1] * 4,
    depths=[1] * 4,
    ranks=[[0]] * 4,
    refused=[0] * 4,
    forwards=4,
    draft_seconds=0.08,
    score_seconds=0.28,
    verify_seconds=0.02,
)


def small(*samples, keys=(VANILLA, FAST, SLOW)):
    """Return records of these generations, or of all three."""
    return records(*(samples or (PLAIN, DRAFTED, OTHER)), keys=keys)


def before_schema_4(generation):
    """Return a generation as an earlier version recorded it."""
    return replace(generation, depths=None, ranks=None, refused=None, verify_seconds=None)
