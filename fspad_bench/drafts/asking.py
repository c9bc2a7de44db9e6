"""Whether a drafter is asked: by what its proposals were worth in this text.

Drafting is the dear part for some: a level of the target's own layers costs half a forward or more.
One whose usual proposal would not raise tokens a second is left alone, and asked again now and
then, since texts change.
"""

from __future__ import annotations

from collections.abc import Sequence

LOOKING = 0.02  # the share of the time that goes into asking one that is not thought to pay
FADING = 0.9  # the weight of a proposal one proposal later, once there are some


class Habit:
    """A drafter's usual proposal, and how long it has not been asked.

    usual     the chances of its proposals, best first, as a fading mean; None before the first.
    latest    those of the last one: what repeats an earlier text does so for some steps.
    waited    seconds of the steps since it was asked.
    noted     how many proposals there were.
    """

    def __init__(self) -> None:
        self.usual: list[float] | None = None
        self.latest: list[float] = []
        self.waited = 0.0
        self.noted = 0

    def is_due(self, seconds: float) -> bool:
        """Whether asking, which takes so long, is cheap beside the time without it."""
        return self.usual is None or seconds <= LOOKING * self.waited

    def note(self, chances: Sequence[float]) -> None:
        """Take the chances of a proposal that was asked for."""
        self.noted += 1
        self.latest = now = sorted(chances, reverse=True)
        before = self.usual or []
        length = max(len(before), len(now))
        before = before + [0.0] * (length - len(before))
        now = now + [0.0] * (length - len(now))
        share = max(1 - FADING, 1 / self.noted)
        self.usual = [b + share * (n - b) for b, n in zip(before, now, strict=True)]

    def wait(self, seconds: float, *, asked: bool) -> None:
        """Let a step pass that asked the drafter, or did not."""
        self.waited = seconds if asked else self.waited + seconds
