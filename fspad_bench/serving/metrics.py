"""Counters of a server's `/metrics` page, in Prometheus' text format."""

from __future__ import annotations

from math import isfinite, nan
from typing import NamedTuple


class Drafts(NamedTuple):
    """Draft tokens since a server's start: proposed, and accepted."""

    drafted: int
    accepted: int

    def since(self, before: Drafts) -> Drafts | None:
        """Return what was counted since `before`, None where the server has begun anew."""
        counted = Drafts(self.drafted - before.drafted, self.accepted - before.accepted)
        return counted if min(counted) >= 0 else None


VLLM = (
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
)


def total(page: str, name: str) -> int | None:
    """Return the sum of a counter over its labels.

    None where the page does not have it, or where a value of it is not a number.
    """
    values = []
    for line in page.splitlines():
        metric, _, rest = line.partition("{") if "{" in line else line.partition(" ")
        if metric == name:
            values.append(_value(rest.rpartition("}")[2]))
    whole = sum(values)
    return int(whole) if values and isfinite(whole) else None


def _value(text: str) -> float:
    """Return the number before an optional time stamp, NaN without one."""
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        return nan


def drafts(page: str, names: tuple[str, str]) -> Drafts | None:
    """Return the draft counters of a page, None where it does not have both."""
    drafted, accepted = (total(page, name) for name in names)
    return None if drafted is None or accepted is None else Drafts(drafted, accepted)
