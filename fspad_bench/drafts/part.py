"""One of the drafters that share a tree: what asking it costs, and what its proposals are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fspad_bench.core.protocols import Context, Drafter, Measurements, Scores, Step
from fspad_bench.core.tree import Tree
from fspad_bench.drafts.asking import Habit
from fspad_bench.drafts.merging import Proposal, TrackRecord
from fspad_bench.drafts.sizing.costs import Costs


@dataclass
class Part:
    """One of the drafters.

    `costs`: of a greedy and of a sampled step that asks it alone; `prepared`: what it has measured
    itself.
    """

    label: str
    drafter: Drafter
    costs: Mapping[bool, Costs] | None = None
    prepared: Measurements | None = None
    record: TrackRecord = field(default_factory=TrackRecord)
    habit: Habit = field(default_factory=Habit)
    last: Tree | None = None  # its tree in this step, if it was asked
    chances: Sequence[float] | None = None  # what it says of them itself

    def seconds(self, prefix: int, *, greedy: bool) -> float:
        """Return what asking it adds to a step at this prefix length."""
        assert self.costs is not None
        return self.costs[greedy].level_seconds(prefix)

    def begin(self, context: Context, scores: Scores) -> None:
        self.drafter.begin(context, scores)
        self.record = TrackRecord()
        self.habit = Habit()
        self.last = None

    def propose(self, context: Context, budget: int) -> Proposal:
        self.last = self.drafter.propose(context, budget)
        self.chances = self.drafter.chances()
        if self.chances is None:
            return Proposal(self.last, self.record.chances(self.last))
        return Proposal(self.last, self.chances)

    def observe(self, step: Step) -> None:
        self.drafter.observe(step)
        if self.last is not None:
            self.record.learn(self.last, step.tokens)
            said = self.chances
            self.habit.note(self.record.hopes(self.last) if said is None else said)
        self.last = None
