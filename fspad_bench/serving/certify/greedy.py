"""Greedy identity: the served answers are the plain server's, but for near ties.

- An answer that differs is audited at its first difference by the plain server's own
  log-probabilities after the same prefix: the lead of its token over the served one. A lead below
  `Plan.tie` is rounding; a larger one is a finding.
- The control asks the plain server again at the cell's concurrency: what an engine does by itself
  is not the fault of speculation. Where it differs from itself by more than near ties, the served
  side must do so significantly more often.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from scipy.stats import fisher_exact

from fspad_bench.benchmark.stats import agreement
from fspad_bench.lossless.checks import FAIL, INCONCLUSIVE, PASS, Check
from fspad_bench.serving.certify.drafts import check_drafts, with_drafts
from fspad_bench.serving.certify.observation import CUT, Observation
from fspad_bench.serving.certify.pair import Pair
from fspad_bench.serving.certify.plan import PLAIN, SERVED, Cell, Sampling

IDENTITY = "greedy identity"
CONTROL = "plain repeats itself"
NO_AUDIT = "no log-probs explain the plain token: give --target"

Scorer = Callable[[tuple[int, ...], tuple[int, ...], int, int, Sampling], float]
"""The lead of one token over another after prompt and output, by a target of our own.

Either token may be `observation.END`.
"""


class Judge(NamedTuple):
    """A judge of differences: log-probabilities as the server has them, or a target of ours.

    `raw`: the server's log-probabilities are those before penalties. `tie` is `Plan.tie`.
    """

    sampling: Sampling
    raw: bool = True
    scorer: Scorer | None = None
    tie: float = 0.25


class Difference(NamedTuple):
    """The place where two answers part, and by how much the plain server preferred its own token.

    `lead` is nan where nothing can tell; where it is a lower bound, it exceeds a tie.
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
    """Return the log-probability of the plain token less that of the served, where they part.

    A token that is not listed, and an end, which never is, give a lower bound: it is returned where
    it exceeds a tie, and is nan otherwise. A target of ours gives the lead itself.
    """
    if plain.is_text or served.is_text:
        return math.nan  # characters are not token ids
    at = agreement(plain.tokens, served.tokens)
    ours = plain.choice(at)
    theirs = served.choice(at)
    output = plain.tokens[:at]
    if judge.scorer and CUT not in (ours, theirs):
        return judge.scorer(prompt, output, ours, theirs, judge.sampling)
    if judge.raw and judge.sampling.repetition != 1:
        return math.nan  # this penalty needs the signs of logits
    if ours < 0 or theirs < 0:
        longer = plain if ours >= 0 else served
        return _lead_over_end(longer, at, output, judge)
    return _lead_over_token(plain.alternatives(at), ours, theirs, output, judge)


def _lead_over_token(
    known: dict[int, float], ours: int, theirs: int, output: Sequence[int], judge: Judge
) -> float:
    """Return the lead of one token over another by the log-probabilities of the likeliest."""
    others = [p for token, p in known.items() if token != ours]
    if ours not in known or not others:
        return math.nan
    penalty = penalties(output, judge)
    own = known[ours] - penalty(ours)
    if theirs in known:
        return own - (known[theirs] - penalty(theirs))
    return _beyond_tie(own - (min(others) - penalty(theirs)), judge)


def _lead_over_end(longer: Observation, at: int, output: Sequence[int], judge: Judge) -> float:
    """Return the lead of the longer answer's token over an end, whose id is not known.

    The end is one of the alternatives, or below them all; it is never penalised.
    """
    known = longer.alternatives(at)
    own = known.pop(longer.choice(at), math.nan)
    if not known:
        return math.nan
    penalty = penalties(output, judge)
    end = max(*(p - penalty(token) for token, p in known.items()), min(known.values()))
    return _beyond_tie(own - penalty(longer.choice(at)) - end, judge)


def _beyond_tie(bound: float, judge: Judge) -> float:
    return bound if bound > judge.tie else math.nan


def penalties(output: Sequence[int], judge: Judge) -> Callable[[int], float]:
    """Return what is still to be taken from a token's log-probability after `output`."""
    sampling = judge.sampling
    counts = Counter(output)
    if not judge.raw:
        return lambda token: 0.0  # the server's are those after penalties
    return lambda token: sampling.presence * (token in counts) + sampling.frequency * counts[token]


def check_greedy(pair: Pair, cell: Cell, judge: Judge, alpha: float) -> list[Check]:
    """Check drafts and greedy identity in a cell, and what the plain server does by itself."""
    times = pair.plan.greedy_repeats
    plain = pair.greedy("together", PLAIN, cell, cell.sampling, times=times, alone=False)
    again = pair.greedy("together again", PLAIN, cell, cell.sampling, times=times, alone=False)
    served = pair.greedy("together", SERVED, cell, cell.sampling, times=times, alone=False)
    prompts = pair.plan.prompts_of(cell) * times
    own = differences(plain, again, prompts, judge)
    found = differences(plain, served, prompts, judge)
    control = control_check(cell.name, own, len(plain))
    identity = judged(IDENTITY, cell.name, found, served, judge.tie, own, alpha)
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
    alpha: float = 0.0,
) -> Check:
    """Return the verdict of an identity from its differences.

    `own` are the plain server's from itself, in as many answers. Where some of these are more than
    near ties, the served side's are a finding only if Fisher's exact test of both counts rejects
    at `alpha`.
    """
    tokens = sum(len(answer.tokens) for answer in served)
    figure = f"{len(served) - len(found)} of {len(served)} answers identical, {tokens} tokens"
    bound = f"a lead of {tie:g} nats"
    if not found:
        return Check(name, subject, PASS, figure, bound)
    large = [d for d in found if d.lead > tie]
    unknown = [d for d in found if is_unknown(d, tie)]
    if large:
        figure += f"; {len(large)} differ by more than a near tie, {_worst(large)}"
        noisy = [d for d in own if d.lead > tie or is_unknown(d, tie)]
        if not noisy:
            return Check(name, subject, FAIL, figure, bound)
        p = more_often(len(large), len(noisy), len(served))
        figure += f"; the plain server differs so from itself in {len(noisy)}, p {p:.2g}"
        verdict = FAIL if p <= alpha else INCONCLUSIVE
        return Check(name, subject, verdict, figure, f"{bound}, p {alpha:.2g}")
    if unknown:
        figure += f"; {len(unknown)} differ and cannot be audited: {NO_AUDIT}"
        return Check(name, subject, INCONCLUSIVE, figure, bound)
    figure += f"; {len(found)} near ties, largest lead overturned {_largest(found):.2g} nats"
    return Check(name, subject, PASS, figure, bound)


def is_unknown(difference: Difference, tie: float) -> bool:
    """Whether nothing tells if a difference is a near tie."""
    return math.isnan(difference.lead) or difference.lead < -tie


def more_often(served: int, own: int, answers: int) -> float:
    """Return the one-sided p-value of Fisher's exact test that `served` is above `own`."""
    table = [[served, answers - served], [own, answers - own]]
    return float(fisher_exact(table, alternative="greater").pvalue)


def _worst(found: Sequence[Difference]) -> str:
    first = max(found, key=lambda d: d.lead)
    return f"answer {first.answer + 1} at token {first.position + 1} by {first.lead:.2g} nats"


def _largest(found: Iterable[Difference]) -> float:
    return max((d.lead for d in found if not math.isnan(d.lead)), default=math.nan)
