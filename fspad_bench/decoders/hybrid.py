"""Several drafters in one tree, each where it pays: retrieval where the text repeats, a head
elsewhere.

Every step:

1. The cheapest drafter is asked; each further one if its proposal is expected to raise this step's
   tokens a second, given what the cheaper ones have proposed: a long match of the text makes a
   head's levels a waste. One that is not expected to is asked again now and then: texts change.
2. The proposals become one trie (`drafts.merging`). A node's chance is what its drafter says of it,
   or what such guesses of this drafter were worth in this text so far.
3. The tree is cut where expected tokens a second are highest on this machine.

SAM decoding (Hu et al. 2024, arXiv 2411.10666) asks retrieval or a head by the length of the match,
Graft (arXiv 2605.20104) puts retrieved branches in the place of a head's weak ones; here one
measure, expected tokens a second, decides both. The drafted tokens are verified by `match`, so the
output is vanilla's whatever is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from fspad_bench.core.protocols import Context, Drafter, Measurements, Scores, Step
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import match
from fspad_bench.decoders.build import Decoder, build_decoder
from fspad_bench.drafts.drafter import HeadDrafter
from fspad_bench.drafts.measure import asking_costs, facts_of
from fspad_bench.drafts.merging import Proposal, merged, pruned
from fspad_bench.drafts.part import Part
from fspad_bench.drafts.sized import SizedDrafter
from fspad_bench.drafts.sizing.costs import NEAR, Costs, is_measurable
from fspad_bench.drafts.sizing.policy import MOST_NODES, best_size
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.util.errors import BenchError


class Hybrid(Drafter):
    """`of`: two or more decoders, with presets if need be (`fspad,suffix`); `nodes`: the
    most that a tree holds.
    """

    def __init__(
        self,
        target: TransformersTarget,
        *,
        of: str = "fspad,suffix",
        nodes: int = MOST_NODES,
    ) -> None:
        labels = [label.strip() for label in of.split(",") if label.strip()]
        if len(set(labels)) < 2 or len(set(labels)) < len(labels):
            raise BenchError(
                f"hybrid.of={of}: at least two different decoders", "such as of=fspad,suffix"
            )
        if not 2 <= nodes <= LARGEST_TREE:
            raise BenchError(f"hybrid.nodes={nodes}", f"2 <= nodes <= {LARGEST_TREE}")
        if not is_measurable(target):
            raise BenchError(
                f"hybrid times its drafters behind {NEAR} tokens, and {target.name} reads "
                f"{target.max_length} in all",
                "take one of its drafters",
            )
        self.target = target
        self.nodes = nodes
        self.decoders = [_decoder(label, target) for label in labels]
        self.parts = [Part(decoder.label, _drafter_of(decoder)) for decoder in self.decoders]
        captures = {
            tuple(part.drafter.capture)
            for part in self.parts
            if part.drafter.capture or isinstance(part.drafter, HeadDrafter)
        }
        if len(captures) > 1:
            raise BenchError(
                f"hybrid.of={of}: they read different layers of the target", "take one of them"
            )
        self.capture = captures.pop() if captures else ()
        if any(part.drafter.scope == "run" for part in self.parts):
            self.scope = "run"

    def settings(self) -> dict[str, Any]:
        return {
            "of": ",".join(part.label for part in self.parts),
            "nodes": self.nodes,
            "parts": self._options(),
        }

    def _options(self) -> dict[str, Any]:
        """Return what really runs of each drafter, its code too."""
        return {decoder.label: decoder.options for decoder in self.decoders}

    def prepare(
        self, target: TransformersTarget, known: Measurements | None = None
    ) -> Measurements | None:
        """Let each drafter prepare itself, then time what asking it costs."""
        known = known or {}
        measurements: dict[str, Any] = {}
        for part in self.parts:
            own = known.get(part.label, {})
            part.prepared = part.drafter.prepare(target, own.get("prepared"))
            part.costs = self._costs(part, own.get("costs"))
            measurements[part.label] = {"prepared": part.prepared, "costs": facts_of(part.costs)}
        return measurements

    def may_share(self) -> bool:
        return all(part.drafter.may_share() for part in self.parts)

    def twin(self) -> Hybrid:
        twin = copy(self)
        twin.parts = [self._twin_of(part) for part in self.parts]
        return twin

    def _twin_of(self, part: Part) -> Part:
        drafter = part.drafter.twin()
        if drafter is None:
            drafter = _drafter_of(_decoder(part.label, self.target))
            drafter.prepare(self.target, part.prepared)
        return replace(part, drafter=drafter)

    def begin(self, context: Context, scores: Scores) -> None:
        if any(part.costs is None for part in self.parts):
            self.prepare(self.target)
        for part in self.parts:
            part.begin(context, scores)

    def propose(self, context: Context, budget: int) -> Tree:
        root = context.tokens[-1]
        if budget < 1:
            return Tree.root(root)
        prefix = len(context.tokens)
        known = [part.costs[context.greedy] for part in self.parts if part.costs is not None]
        forwards = known[0].all_forwards(prefix, context.batch)  # the same for all
        # verification and commit, and what the dearest does to keep up with the text
        spent = max(costs.overhead_seconds(0, prefix) for costs in known)
        asking = {part.label: part.seconds(prefix, greedy=context.greedy) for part in self.parts}
        proposals: list[Proposal] = []
        asked = set()
        whole = Proposal(Tree.root(root), [])
        for part in sorted(self.parts, key=lambda part: asking[part.label]):
            seconds = asking[part.label]
            is_due = not proposals or part.habit.is_due(seconds)
            if is_due or self._pays(part, whole, forwards, (spent, seconds)):
                proposals.append(part.propose(context, budget))
                asked.add(part.label)
                spent += seconds
                whole = merged(root, proposals)
        ranked = sorted(whole.chances, reverse=True)
        _, size = best_size(ranked, forwards, spent, self.nodes - 1)
        for part in self.parts:
            part.habit.wait(spent + forwards[1 + size], asked=part.label in asked)
        return pruned(whole, size)

    def observe(self, step: Step) -> None:
        for part in self.parts:
            part.observe(step)

    def _pays(
        self,
        part: Part,
        whole: Proposal,
        forwards: Sequence[float],
        seconds: tuple[float, float],
    ) -> bool:
        """Whether this drafter's usual proposal would raise the rate; `seconds`: spent before it,
        and on it.

        It is thought to help only where those asked before it are wrong at once.
        """
        first = [c for c, p in zip(whole.chances, whole.tree.parents[1:], strict=True) if p == 0]
        failing = 1 - min(1.0, sum(first))
        more = [failing * chance for chance in part.habit.usual or []]
        most = self.nodes - 1
        ranked = sorted(whole.chances, reverse=True)
        spent, further = seconds
        without, _ = best_size(ranked, forwards, spent, most)
        together = sorted([*whole.chances, *more], reverse=True)
        rate, _ = best_size(together, forwards, spent + further, most)
        return rate > without

    def _costs(self, part: Part, known: Measurements | None) -> dict[bool, Costs]:
        """Return what steps of a drafter like this part's cost; the part's own learns nothing."""
        about = {"part": part.label, "settings": self._options().get(part.label, {})}
        return asking_costs(self.target, about, lambda: self._twin_of(part).drafter, known)


def _decoder(label: str, target: TransformersTarget) -> Decoder:
    """Build one of the drafters. Raises BenchError for what cannot share a tree."""
    decoder = build_decoder(label, target)
    drafter = decoder.drafter
    if drafter is None:
        raise BenchError(f"hybrid.of: {label} is an engine of its own", "name drafters")
    if isinstance(drafter, Hybrid):
        raise BenchError(f"hybrid.of: {label} is a hybrid itself", "name its drafters")
    if drafter.rule is not match:
        raise BenchError(
            f"hybrid.of: {label} draws its drafts for another rule of verification",
            "a shared tree is verified by match",
        )
    if isinstance(drafter, SizedDrafter):
        drafter.whole()
    return decoder


def _drafter_of(decoder: Decoder) -> Drafter:
    assert decoder.drafter is not None
    return decoder.drafter
