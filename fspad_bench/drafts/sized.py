"""Drafters whose candidates have no calibration: of all that they find, a tree holds as many as pay
on this machine, and where none would, they are not asked.

A published tree is as large as its authors' hardware liked it: 64 nodes are nearly free on a GPU
and cost two cores thirteen forwards. As for adaptive trees (`sizing.policy`), nodes are kept to
where expected tokens a second are highest. What a candidate is worth is learned from this text
(`merging.TrackRecord`), from those that were left out too: the target's answer decides on them as
far as its tokens lead through them. Asking pays where the usual proposal would (`asking.Habit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from functools import partial
from typing import Any

from fspad_bench.core.protocols import Context, Drafter, Measurements, Scores, Step
from fspad_bench.core.tree import Tree
from fspad_bench.drafts.asking import Habit
from fspad_bench.drafts.measure import asking_costs, facts_of
from fspad_bench.drafts.merging import Proposal, TrackRecord, pruned
from fspad_bench.drafts.sizing.costs import NEAR, Costs, is_measurable, measure_target
from fspad_bench.drafts.sizing.policy import TREES, best_size
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.util.errors import BenchError, near
from fspad_bench.util.provenance import is_of_package


class SizedDrafter(Drafter):
    """The base class: `candidates` must be written, and `begin` and `observe` call those of here.

    size    of a tree, where one is given.
    tree    `auto`: of all candidates those that pay on this machine, by what `prepare` measures;
            `fixed`: all. Empty: `auto`, unless a size is given or nothing can be timed on this
            target.

    With `scope=prompt` its `begin` puts new objects in the place of what was learned.
    """

    def __init__(self, target: Any, *, tree: str = "", size: int | None = None) -> None:
        self.target = target
        self.tree = resolved_tree(target, tree, sized=size is not None)
        self.costs: Mapping[bool, Costs] | None = None  # of a greedy and of a sampled step
        self.record = TrackRecord()
        self.habit = Habit()
        self.last: Proposal | None = None  # all candidates, and what was thought of them

    def size_of(self, given: int | None, *, auto: int, fixed: int) -> int:
        """Return the most that is looked for: what was given, or else what suits `tree`."""
        if given is not None:
            return given
        return auto if self.tree == "auto" else fixed

    def candidates(self, context: Context, budget: int) -> Tree:
        """Return all that may be proposed, as `propose` would; not every step asks for it."""
        raise TypeError(f"{type(self).__name__} has no candidates(context, budget)")

    def settings(self) -> dict[str, Any]:
        return {"tree": self.tree}

    def prepare(
        self, target: TransformersTarget, known: Measurements | None = None
    ) -> Measurements | None:
        """Measure what a forward and asking this drafter cost, or take what is known."""
        if self.tree == "fixed":
            return None
        about = None  # nothing tells the code of another package's
        if is_of_package(type(self)):
            about = {"part": type(self).__name__, "settings": self.settings()}
        self.costs = asking_costs(self.target, about, partial(self._beginner, target), known)
        return facts_of(self.costs)

    def whole(self) -> None:
        """Propose every candidate from now on: another cuts the tree."""
        self.tree = "fixed"

    def begin(self, context: Context, scores: Scores) -> None:
        self.forget_chances()
        self.last = None

    def forget_chances(self) -> None:
        """Know nothing of what candidates are worth: another text, or another way to draft."""
        self.record = TrackRecord()
        self.habit = Habit()

    def propose(self, context: Context, budget: int) -> Tree:
        self.last = None
        if self.costs is None:
            return self.candidates(context, budget)
        costs = self.costs[context.greedy]
        prefix = len(context.tokens)
        forwards = costs.all_forwards(prefix, context.batch)
        idle, asked = (costs.overhead_seconds(times, prefix) for times in (0, 1))
        if not self.is_asked(forwards, idle, asked):
            self.habit.wait(idle + forwards[1], asked=False)
            return Tree.root(context.tokens[-1])
        tree = self.candidates(context, budget)
        if tree.q is not None:  # drawn children are verified as a whole
            return tree
        self.last = Proposal(tree, self.record.chances(tree))
        ranked = sorted(self.last.chances, reverse=True)
        _, size = best_size(ranked, forwards, asked, LARGEST_TREE - 1)
        self.habit.wait(asked + forwards[1 + size], asked=True)
        return pruned(self.last, size)

    def is_asked(self, forwards: Sequence[float], idle: float, asked: float) -> bool:
        """Whether the usual proposal, or one like the last, makes more tokens a second than a step
        without one; or it is time to look.

        `idle`, `asked`: seconds of such steps beside their forwards.
        """
        if self.habit.is_due(asked - idle):
            return True
        known = (self.habit.usual or [], self.habit.latest)
        rates = [best_size(chances, forwards, asked, LARGEST_TREE - 1)[0] for chances in known]
        return max(rates) > 1 / (idle + forwards[1])

    def observe(self, step: Step) -> None:
        if self.last is not None:
            self.record.learn(self.last.tree, step.tokens)
            self.habit.note(self.record.hopes(self.last.tree))
        self.last = None

    def _beginner(self, target: TransformersTarget) -> Drafter:
        """Return one like this to be timed, from which this one learns nothing."""
        beginner = self.twin()
        if beginner is None and type(self).scope == "run":  # it learns whatever its scope says
            beginner = deepcopy(self, {id(self.target): self.target})
        beginner = beginner or copy(self)
        assert isinstance(beginner, SizedDrafter)
        beginner.scope = "prompt"
        beginner.costs = dict.fromkeys((True, False), measure_target(target))
        return beginner


def resolved_tree(target: Any, tree: str, *, sized: bool) -> str:
    """Return `auto` or `fixed`. Raises BenchError for anything else, and for `auto` where no step
    can be timed.
    """
    if tree and tree not in TREES:
        raise BenchError(f"unknown tree '{tree}'", near(tree, TREES))
    measurable = isinstance(target, TransformersTarget) and is_measurable(target)
    if tree == "auto" and not measurable:
        raise BenchError(
            f"tree=auto times steps behind {NEAR} tokens, which this target does not read",
            "use tree=fixed",
        )
    return tree or ("auto" if measurable and not sized else "fixed")
