"""Explanations of a record: figures of each case, comparisons of decoders, and what is missing.

Names in JSON are a contract: names are added, never renamed. What cannot be known is None, and
`gaps` say why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, permutations
from typing import Any

from fspad_bench.analysis.acceptance import Acceptance, acceptance
from fspad_bench.analysis.cases import ALL_TASKS, Case, Group, groups
from fspad_bench.analysis.factors import Chain, chain
from fspad_bench.analysis.sentence import sentence
from fspad_bench.analysis.shares import StepTimes, step_times
from fspad_bench.benchmark.record import Records
from fspad_bench.benchmark.speeds import pairs_of

WORTH_TELLING = 0.01  # a difference between two decoders that are not named


@dataclass(frozen=True)
class Explanation:
    """The figures of a case that explain its speedup."""

    case: Case
    acceptance: Acceptance
    step: StepTimes | None
    chain: Chain | None
    modelled: float | None
    gaps: list[str]

    @property
    def tokens(self) -> float:
        return self.step.tokens if self.step else 0.0

    @property
    def speedup(self) -> float:
        return self.chain.speedup if self.chain else 0.0


@dataclass(frozen=True)
class Comparison:
    """Two decoders on the prompts that both answered, one in the place of vanilla."""

    decoder: str
    reference: str
    task: str
    chain: Chain

    @property
    def sentence(self) -> str:
        return sentence(self.decoder, self.reference, self.chain)


@dataclass(frozen=True)
class Report:
    """The explanations of a group, and the comparisons of its decoders."""

    group: Group
    explanations: list[Explanation]
    comparisons: list[Comparison]


def reports(
    records: Records, wanted: Sequence[str] = (), *, without_loops: bool = False
) -> list[Report]:
    """Return a report a group. Raises BenchError for a decoder that the records do not hold."""
    found = groups(records, wanted, without_loops=without_loops)
    return [_report(group, wanted) for group in found]


def _report(group: Group, wanted: Sequence[str]) -> Report:
    explanations = [explained(case) for case in group.cases]
    return Report(group, explanations, _comparisons(explanations, wanted))


def explained(case: Case) -> Explanation:
    """Return what is known of a case; a foreign engine's steps are what it claims, so nothing.

    Where the decode clock missed some of the work, neither a step's time nor a speedup is known.
    """
    own = step_times(case.samples) if case.is_timed else None
    product = chain(case.pairs) if case.is_timed else None
    accepted = acceptance([] if case.is_foreign else case.samples)
    return Explanation(
        case,
        accepted,
        own,
        product,
        _modelled(case, product),
        _gaps(case, accepted, own, product),
    )


def _modelled(case: Case, product: Chain | None) -> float | None:
    if not (product and case.costs):
        return None
    from fspad_bench.analysis.model import modelled  # imports torch

    return modelled(product, [pair.decoder for pair in case.pairs], case.costs)


def _gaps(
    case: Case, accepted: Acceptance, own: StepTimes | None, product: Chain | None
) -> list[str]:
    """Return what the record does not hold of a case, and what follows from it."""
    if case.gap:
        return [case.gap]
    if not case.samples:
        return ["no generation is left"]
    if case.is_foreign:
        return ["an engine of its own, timed from outside: nothing is known of its steps"]
    gaps = []
    drafts = any(any(sample.drafted) for sample in case.samples)
    if drafts and not accepted.is_exact:
        gaps.append(
            "the record does not say which nodes were accepted: rates by depth are lower bounds, "
            "and neither ranks nor a perfect draft's speedup are known"
        )
    if own and not own.parts:
        gaps.append("parts of a step were not timed: their factors are one, `step`")
    elif own and "verification" not in own.parts:
        gaps.append("verification was not timed: it is part of the rest")
    if case.hidden:
        gaps.append(f"no decode speedup: {case.hidden}")
    elif not case.paired:
        gaps.append("vanilla did not answer the same prompts: there is no speedup to explain")
    elif product is None:
        gaps.append("no steps or no decode times: there is no speedup to explain")
    return gaps


def _comparisons(explanations: Sequence[Explanation], wanted: Sequence[str]) -> list[Comparison]:
    """Return the comparisons of named decoders, each with the next; where none are named, those of
    which one commits more tokens a step and is slower.
    """
    comparisons = []
    for task in dict.fromkeys(e.case.task for e in explanations):
        of_task = [e for e in explanations if e.case.task == task]
        if wanted:
            named = [e for e in of_task if not e.case.is_vanilla or "vanilla" in wanted]
            couples = list(pairwise(sorted(named, key=lambda e: _place(e.case, wanted))))
        else:
            couples = [(a, b) for a, b in permutations(of_task, 2) if _contradict(a, b)]
        comparisons += [c for one, other in couples if (c := _comparison(one.case, other.case))]
    return comparisons


def _place(case: Case, wanted: Sequence[str]) -> int:
    """Return where a decoder stands in the list of the wanted ones."""
    bare = case.decoder.partition(" (")[0]
    return next((i for i, name in enumerate(wanted) if name in (case.decoder, bare)), len(wanted))


def _contradict(one: Explanation, other: Explanation) -> bool:
    """Whether the first commits more tokens a step than the second and is slower all the same."""
    if not (one.speedup and other.speedup):
        return False
    more = one.tokens / other.tokens - 1
    slower = 1 - one.speedup / other.speedup
    return more >= WORTH_TELLING and slower >= WORTH_TELLING


def _comparison(one: Case, other: Case) -> Comparison | None:
    pairs = pairs_of([p.decoder for p in other.pairs], [p.decoder for p in one.pairs])
    product = chain(pairs) if one.is_timed and other.is_timed else None
    if product is None:
        return None
    return Comparison(one.decoder, other.decoder, one.task, product)


def conclusions(report: Report) -> list[Comparison]:
    """Return the comparisons to conclude with: over all tasks, or of the only one."""
    tasks = {comparison.task for comparison in report.comparisons}
    last = ALL_TASKS if ALL_TASKS in tasks else None
    every = report.comparisons
    return [c for c in every if c.task == last] if last else every


def as_json(report: Report) -> dict[str, Any]:
    """Return a report under its names in JSON."""
    return {
        "place": report.group.place,
        "sampling": report.group.sampling,
        "decoders": [_explanation_json(explanation) for explanation in report.explanations],
        "comparisons": [
            {
                "decoder": c.decoder,
                "reference": c.reference,
                "task": c.task,
                "speedup": c.chain.speedup,
                "factors": c.chain.factors,
                "sentence": c.sentence,
            }
            for c in report.comparisons
        ],
    }


def _explanation_json(explanation: Explanation) -> dict[str, Any]:
    accepted = explanation.acceptance
    product = explanation.chain
    return {
        "decoder": explanation.case.decoder,
        "task": explanation.case.task,
        "outputs": len(explanation.case.samples),
        "acceptance_is_exact": accepted.is_exact,
        "acceptance_by_depth": [{**d._asdict(), "rate": d.rate} for d in accepted.depths],
        "accepted_by_rank": accepted.ranks,
        "tokens_per_step_by_position": [
            {**p._asdict(), "tokens_per_step": p.tokens_per_step} for p in accepted.positions
        ],
        "committed": accepted.committed,
        "step": asdict(explanation.step) if explanation.step else None,
        "speedup": product.speedup if product else None,
        "factors": product.factors if product else None,
        "modelled_speedup": explanation.modelled,
        "perfect_draft_speedup": product.perfect_draft if product else None,
        "free_draft_speedup": product.free_draft if product else None,
        "gaps": explanation.gaps,
    }
