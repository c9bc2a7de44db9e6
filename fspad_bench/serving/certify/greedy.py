"""Greedy identity: the served answers are the plain server's, but for near ties.

- An answer that differs is audited at its first difference by the plain server's own
  log-probabilities after the same prefix: the lead of its token over the served one. A lead below
  `Plan.tie` is rounding; a larger one is a finding.
- The control asks the plain server twice, alone and at the cell's concurrency: what an engine does
  by itself is not the fault of speculation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from fspad_bench.benchmark.stats import agreement
from fspad_bench.lossless.checks import FAIL, INCONCLUSIVE, PASS, Check
from fspad_bench.serving.certify.drafts import check_drafts, with_drafts
from fspad_bench.serving.certify.observation import Observation
from fspad_bench.serving.certify.pair import Pair
from fspad_bench.serving.certify.plan import PLAIN, SERVED, Cell, Sampling

IDENTITY = "greedy identity"
CONTROL = "plain repeats itself"
NO_AUDIT = "no log-probs explain the plain token: give --target"

Scorer = Callable[[tuple[int, ...], tuple[int, ...], int, int, Sampling], float]
"""The lead of one token over another after prompt and output, by a target of our own."""


class Judge(NamedTuple):
    """What judges a difference: log-probabilities as the server has them, or a target of ours.

    `raw`: the server's log-probabilities are those before penalties.
    """

    sampling: Sampling
    raw: bool = True
    scorer: Scorer | None = None


class Difference(NamedTuple):
    """Where two answers part, and by how much the plain server preferred its own token.

    `lead` is nan where nothing can tell, and infinite where the served token is not among the
    alternatives and these leave no room for a tie.
    """

    answer: int
    position: int
    lead: float


def differences(
    plain: Sequence[Observation],
    served: Sequence[Observation],
    prompts: Sequence[tuple[int, ...]],
    judge: Judge,
) -> list[Difference]:
    """Return the first difference of every pair of answers that differ."""
    return [
        Difference(i, agreement(ours.tokens, theirs.tokens), lead(ours, theirs, prompt, judge))
        for i, (ours, theirs, prompt) in enumerate(zip(plain, served, prompts, strict=True))
        if ours.tokens != theirs.tokens or ours.end != theirs.end
    ]


def lead(plain: Observation, served: Observation, prompt: tuple[int, ...], judge: Judge) -> float:
    """Return the log-probability of the plain token less that of the served, where they part."""
    at = agreement(plain.tokens, served.tokens)
    if at >= min(len(plain.tokens), len(served.tokens)):
        return _lead_of_end(plain, served, at)
    ours = plain.tokens[at]
    theirs = served.tokens[at]
    output = plain.tokens[:at]
    if judge.scorer:
        return judge.scorer(prompt, output, ours, theirs, judge.sampling)
    known = penalised(plain.alternatives(at), output, judge)
    if ours not in known or len(known) < 2:
        return math.nan
    if theirs in known:
        return known[ours] - known[theirs]
    return known[ours] - min(known.values()) if len(known) > 2 else math.nan


def penalised(
    known: Mapping[int, float], output: Sequence[int], judge: Judge
) -> Mapping[int, float]:
    """Return raw log-probabilities less the penalties of `output`, up to a constant.

    Nothing is known under a repetition penalty, which needs the signs of logits.
    """
    sampling = judge.sampling
    if not judge.raw or not sampling.penalised:
        return known
    if sampling.repetition != 1:
        return {}
    counts = Counter(output)
    return {
        token: p - sampling.presence * (token in counts) - sampling.frequency * counts[token]
        for token, p in known.items()
    }


def _lead_of_end(plain: Observation, served: Observation, at: int) -> float:
    """Return the lead where one answer ends, by the longer one's log-probabilities.

    The token that ends an answer is not returned, so the lead is that over the best alternative: a
    lower bound.
    """
    longer = plain if len(plain.tokens) > at else served
    known = longer.alternatives(at)
    own = known.pop(longer.tokens[at], math.nan) if at < len(longer.tokens) else math.nan
    return own - max(known.values()) if known else math.nan


def check_greedy(pair: Pair, cell: Cell, judge: Judge) -> list[Check]:
    """Check drafts and greedy identity in a cell, and what the plain server does by itself."""
    times = pair.plan.greedy_repeats
    alone = pair.greedy("alone", PLAIN, cell, cell.sampling, alone=True) * times
    plain = pair.greedy("together", PLAIN, cell, cell.sampling, times=times, alone=False)
    served = pair.greedy("together", SERVED, cell, cell.sampling, times=times, alone=False)
    prompts = pair.plan.prompts_of(cell) * times
    own = differences(alone, plain, prompts, judge)
    found = differences(plain, served, prompts, judge)
    control = control_check(cell.name, own, len(plain))
    identity = judged(IDENTITY, cell.name, found, served, pair.plan.tie, own)
    return [check_drafts(cell.name, served), with_drafts(identity, served), control]


def control_check(subject: str, own: Sequence[Difference], answers: int) -> Check:
    """Say how often the plain server differs from itself; that is no fault of speculation."""
    figure = f"{answers - len(own)} of {answers} answers repeated"
    if own:
        figure += f", largest lead overturned {_largest(own):.2g} nats"
    return Check(CONTROL, subject, PASS, figure, "a control")


def judged(
    name: str,
    subject: str,
    found: Sequence[Difference],
    served: Sequence[Observation],
    tie: float,
    own: Sequence[Difference] = (),
) -> Check:
    """Return the verdict of an identity from its differences."""
    tokens = sum(len(answer.tokens) for answer in served)
    figure = f"{len(served) - len(found)} of {len(served)} answers identical, {tokens} tokens"
    bound = f"a lead of {tie:g} nats"
    if not found:
        return Check(name, subject, PASS, figure, bound)
    large = [d for d in found if d.lead > tie]
    unknown = [d for d in found if math.isnan(d.lead) or d.lead < -tie]
    if large:
        first = max(large, key=lambda d: d.lead)
        figure += f"; {len(large)} differ by more than a near tie, answer {first.answer + 1} at "
        figure += f"token {first.position + 1} by {first.lead:.2g} nats"
        own_large = [d for d in own if d.lead > tie]
        if len(own_large) >= len(large):
            figure += f"; the plain server differs from itself as often ({len(own_large)})"
            return Check(name, subject, INCONCLUSIVE, figure, bound)
        return Check(name, subject, FAIL, figure, bound)
    if unknown:
        figure += f"; {len(unknown)} differ and cannot be audited: {NO_AUDIT}"
        return Check(name, subject, INCONCLUSIVE, figure, bound)
    figure += f"; {len(found)} near ties, largest lead overturned {_largest(found):.2g} nats"
    return Check(name, subject, PASS, figure, bound)


def _largest(found: Iterable[Difference]) -> float:
    return max((d.lead for d in found if not math.isnan(d.lead)), default=math.nan)
