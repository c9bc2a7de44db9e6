"""A drafter under observation: what its rounds were like, so that a check can say that it saw something."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fspad_bench.core.loop import Context, Drafter, Scores, Step, rule_of
from fspad_bench.core.sampling import Dice
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import drawn
from fspad_bench.lossless.uniform import transform

DRAWS = (0x0D1CE, 0x5EED)


@dataclass
class Sights:
    """Of all rounds seen: how many drafted tokens were accepted, and whether each of the awkward cases came up.

    `new` maps what is generated (`now`) to an accepted token that its output had not held before: a stop to try.
    `whole` is the depth of the deepest tree that was accepted from root to leaf. `draws` are the drawn children of all
    trees that have a q, each transformed by the law it should have come from.
    """

    now: str = ""
    stops: frozenset[int] = frozenset()
    new: dict[str, int] = field(default_factory=dict)
    accepted: Counter[int] = field(default_factory=Counter)
    budgets: Counter[int] = field(default_factory=Counter)
    deepest: int = 0
    whole: int = 0
    in_part: bool = False
    draws: list[float] = field(default_factory=list)
    branching: bool = False
    moved: bool = False
    stopped_inside: bool = False

    def missing(self) -> list[str]:
        """What never happened; a check that saw none of it proves nothing."""
        if not self.deepest:
            return ["nothing was ever drafted"]
        found = {
            "no draft was ever refused at once": self.accepted[0],
            "no draft was accepted to the full depth of its tree": self.whole
            >= min(2, self.deepest),
            "no draft was accepted in part": self.deepest == 1 or self.in_part,
            "no accepted row had to move": self.moved or not self.branching,
            "no stop fell inside an accepted run": self.stopped_inside or not self.new,
            "no last tree was cut short": any(self.budgets[n] for n in range(self.deepest)),
        }
        return [what for what, seen in found.items() if not seen]


class Witness:
    """Passes everything through to a drafter and notes it in `sights`, which may be shared by many generations."""

    def __init__(self, drafter: Drafter, sights: Sights) -> None:
        self.drafter = drafter
        self.sights = sights
        self.verify = rule_of(drafter)

    def begin(self, context: Context, scores: Scores) -> None:
        self.drafter.begin(context, scores)

    def propose(self, context: Context, budget: int) -> Tree:
        tree = self.drafter.propose(context, budget)
        self.sights.budgets[budget] += 1
        self.sights.deepest = max(self.sights.deepest, *tree.depths)
        self.sights.branching |= any(len(children) > 1 for children in tree.offspring)
        self.before = len(context.tokens)
        self.room = budget
        if tree.q is not None:
            self._note_draws(tree)
        return tree

    def _note_draws(self, tree: Tree) -> None:
        dice = Dice(DRAWS, len(self.sights.draws))
        for node in range(len(tree)):
            for child, q in drawn(tree, node, tree.q[node]):
                self.sights.draws.append(transform(q, tree.tokens[child], dice))

    def observe(self, step: Step) -> None:
        path = step.accepted.path
        tokens = step.context.tokens
        accepted = len(path) - 1
        depth = max(step.tree.depths)
        if depth:
            self.sights.accepted[accepted] += 1
        if accepted == depth and (
            depth < self.room or depth == self.sights.deepest
        ):  # of a tree not cut short
            self.sights.whole = max(self.sights.whole, depth)
        self.sights.in_part |= 0 < accepted < depth
        self.sights.moved |= path[-1] != len(path) - 1
        kept = len(tokens) - self.before
        said = tokens[step.context.prompt_length : self.before]
        for token in (step.tree.tokens[node] for node in path[1:]):
            if token not in said:
                self.sights.new.setdefault(self.sights.now, token)
        self.sights.stopped_inside |= kept < len(path) and tokens[-1] in self.sights.stops
        self.drafter.observe(step)
