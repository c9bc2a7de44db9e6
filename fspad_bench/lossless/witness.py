"""A drafter under observation, so that a check can tell whether the case it tests ever occurred."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fspad_bench.benchmark.uniform import transform
from fspad_bench.core.protocols import Context, Drafter, Measurements, Scores, Step
from fspad_bench.core.sampling import Dice
from fspad_bench.core.tree import Tree, as_tree
from fspad_bench.core.verification import drawn

DICE_KEY = (0x0D1CE, 0x5EED)


@dataclass
class Observations:
    """Counts and flags over all steps of all generations observed.

    - `current` names the generation that runs, `stops` are its stop tokens.
    - `new` maps a generation to an accepted token that its output had not held before: a stop to
      try.
    - `accepted` counts the steps by accepted tokens, `budgets` the proposals by budget.
    - `deepest` is the depth of the deepest tree; `whole` that of the deepest tree accepted from
      root to leaf.
    - `in_part`: a path ended inside its tree. `branching`: a node had several children. `moved`: an
      accepted cache entry had to move. `stopped_inside`: a stop fell inside an accepted path.
    - `draws` are the drawn children of all trees that have a `q`, transformed by the distribution
      they claim.
    """

    current: str = ""
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
        """Return what never happened; a check proves nothing about such a case."""
        if not self.deepest:
            return ["nothing was ever drafted"]
        full_depth = self.whole >= min(2, self.deepest)
        happened = {
            "no draft was ever refused at once": self.accepted[0],
            "no draft was accepted to the full depth of its tree": full_depth,
            "no draft was accepted in part": self.deepest == 1 or self.in_part,
            "no accepted entry had to move": self.moved or not self.branching,
            "no stop fell inside an accepted path": self.stopped_inside or not self.new,
            "no last tree was cut short": any(self.budgets[n] for n in range(self.deepest)),
        }
        return [complaint for complaint, seen in happened.items() if not seen]


class Witness(Drafter):
    """A drafter that passes everything through to another one and records it.

    `draws`: whether drawn children are recorded too, which takes longer than all the rest.
    """

    def __init__(self, drafter: Drafter, observations: Observations, *, draws: bool = True) -> None:
        self.drafter = drafter
        self.observations = observations
        self.draws = draws
        self.rule = drafter.rule
        self.scope = drafter.scope
        self.capture = drafter.capture
        self.before = 0  # tokens of the context at the last proposal
        self.budget = 0

    def prepare(self, target: Any, known: Measurements | None = None) -> Measurements | None:
        return self.drafter.prepare(target, known)

    def begin(self, context: Context, scores: Scores) -> None:
        self.drafter.begin(context, scores)

    def propose(self, context: Context, budget: int) -> Tree:
        tree = as_tree(self.drafter.propose(context, budget))
        seen = self.observations
        seen.budgets[budget] += 1
        seen.deepest = max(seen.deepest, *tree.depths)
        seen.branching |= any(len(children) > 1 for children in tree.offspring)
        self.before = len(context.tokens)
        self.budget = budget
        if self.draws:
            self._record_draws(tree)
        return tree

    def observe(self, step: Step) -> None:
        self._record_path(step)
        self._record_tokens(step)
        self.drafter.observe(step)

    def _record_draws(self, tree: Tree) -> None:
        if tree.q is None:
            return
        dice = Dice(DICE_KEY, len(self.observations.draws))
        for node in range(len(tree)):
            for child, q in drawn(tree, node, tree.q[node]):
                self.observations.draws.append(transform(q, tree.tokens[child], dice))

    def _record_path(self, step: Step) -> None:
        seen = self.observations
        path = step.accepted.path
        accepted = len(path) - 1
        depth = max(step.tree.depths)
        if depth:
            seen.accepted[accepted] += 1
        cut_short = depth >= self.budget and depth != seen.deepest
        if accepted == depth and not cut_short:
            seen.whole = max(seen.whole, depth)
        seen.in_part |= 0 < accepted < depth
        seen.moved |= path[-1] != len(path) - 1

    def _record_tokens(self, step: Step) -> None:
        seen = self.observations
        path = step.accepted.path
        tokens = step.context.tokens
        earlier = tokens[step.context.prompt_length : self.before]
        for node in path[1:]:
            if step.tree.tokens[node] not in earlier:
                seen.new.setdefault(seen.current, step.tree.tokens[node])
        committed = len(tokens) - self.before
        seen.stopped_inside |= committed < len(path) and tokens[-1] in seen.stops
