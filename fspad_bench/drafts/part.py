"""One of the drafters that share a tree: what asking it costs, and what its proposals are worth."""

from __future__ import annotations

from dataclasses import dataclass, field

from fspad_bench.core.protocols import Context, Drafter, Measurements, Scores, Step
from fspad_bench.core.tree import Tree
from fspad_bench.drafts.merging import Proposal, TrackRecord
from fspad_bench.drafts.sizing.costs import Costs

FADING = 0.9  # the weight of a proposal one proposal later


@dataclass
class Part:
    """One of the drafters.

    `costs`: of a step that asks it alone; `idle`: seconds of one that asks no drafter, beside its
    forward; `prepared`: what it has measured itself; `usual`: the chances of its proposals, best
    first, as a fading mean; `waited`: seconds of steps since it was asked last.
    """

    label: str
    drafter: Drafter
    costs: Costs | None = None
    idle: float = 0.0
    prepared: Measurements | None = None
    record: TrackRecord = field(default_factory=TrackRecord)
    usual: list[float] | None = None
    waited: float = 0.0
    last: Tree | None = None  # its tree in this step, if it was asked

    def seconds(self, prefix: int) -> float:
        """Return what asking it adds to a step at this prefix length."""
        assert self.costs is not None
        return max(0.0, self.costs.overhead_seconds(1, prefix) - self.idle)

    def begin(self, context: Context, scores: Scores) -> None:
        self.drafter.begin(context, scores)
        self.record = TrackRecord()
        self.usual = None
        self.waited = 0.0
        self.last = None

    def propose(self, context: Context, budget: int) -> Proposal:
        self.waited = 0.0
        self.last = self.drafter.propose(context, budget)
        chances = self.drafter.chances()
        if chances is None:
            chances = self.record.chances(self.last)
        self._note(sorted(chances, reverse=True))
        return Proposal(self.last, chances)

    def observe(self, step: Step) -> None:
        self.drafter.observe(step)
        if self.last is not None:
            self.record.learn(self.last, step.tokens)
        self.last = None

    def _note(self, chances: list[float]) -> None:
        if self.usual is None:
            self.usual = chances
            return
        length = max(len(self.usual), len(chances))
        before = self.usual + [0.0] * (length - len(self.usual))
        now = chances + [0.0] * (length - len(chances))
        self.usual = [FADING * b + (1 - FADING) * n for b, n in zip(before, now, strict=True)]
