"""Does the served side heed sampling parameters? Settings that leave one token tell at once.

- Top-k 1, a tiny top-p, min-p 1 and a tiny temperature each leave the greedy answer, whatever the
  seed. A side that ignores the parameter samples instead.
- Penalties are asked for greedily: the answer must be the plain server's with the same penalties.
- The plain server is held to the same: what it ignores itself cannot be asked of the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from fspad_bench.lossless.checks import ELSEWHERE, FAIL, INCONCLUSIVE, PASS, Check
from fspad_bench.serving.certify.drafts import with_drafts
from fspad_bench.serving.certify.greedy import Judge, differences, judged
from fspad_bench.serving.certify.pair import Pair
from fspad_bench.serving.certify.plan import PLAIN, SERVED, Cell, Sampling

NAME = "parameters"
COLD = 0.01
TINY = 1e-6
PENALTIES = "penalties"


class Probe(NamedTuple):
    """A parameter, a setting of it that leaves one token, and the greedy setting it comes to."""

    parameter: str
    setting: Sampling
    same_as: Sampling


def probes(sampling: Sampling) -> Iterator[Probe]:
    """Yield a probe of each parameter that a cell sets."""
    penalties = replace(sampling, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)
    warm = replace(sampling, top_p=1.0, top_k=0, min_p=0.0)
    yield Probe("temperature", replace(warm, temperature=COLD), penalties)
    if sampling.top_k:
        yield Probe("top-k", replace(warm, top_k=1), penalties)
    if sampling.top_p < 1:
        yield Probe("top-p", replace(warm, top_p=TINY), penalties)
    if sampling.min_p:
        yield Probe("min-p", replace(warm, min_p=1.0), penalties)
    if sampling.penalised:
        yield Probe(PENALTIES, penalties, penalties)


def check_parameters(pair: Pair, cell: Cell, judge: Judge) -> Check:
    """Check every parameter that a cell sets; the gravest verdict is the cell's."""
    checks = [_checked(pair, cell, probe, judge) for probe in probes(cell.sampling)]
    order = [PASS, ELSEWHERE, INCONCLUSIVE, FAIL]
    gravest = max(checks, key=lambda check: order.index(check.verdict))
    if all(check.verdict == PASS for check in checks):
        names = ", ".join(probe.parameter for probe in probes(cell.sampling))
        return gravest._replace(figure=f"{names}: heeded")
    return gravest


def _checked(pair: Pair, cell: Cell, probe: Probe, judge: Judge) -> Check:
    prompts = pair.plan.prompts_of(cell)
    judge = judge._replace(sampling=probe.same_as)
    greedy = pair.greedy("alone", PLAIN, cell, probe.same_as, alone=True)
    plain = pair.greedy("parameters", PLAIN, cell, probe.setting, alone=False)
    served = pair.greedy("parameters", SERVED, cell, probe.setting, alone=False)
    tie = pair.plan.tie
    own = judged(NAME, cell.name, differences(greedy, plain, prompts, judge), plain, tie)
    if own.verdict != PASS:
        figure = f"{probe.parameter}: the plain server's answers are not its greedy ones"
        return Check(NAME, cell.name, ELSEWHERE, figure)
    if probe.parameter == PENALTIES:
        free = pair.greedy("alone", PLAIN, cell, Sampling(), alone=True)
        if all(one.tokens == other.tokens for one, other in zip(free, greedy, strict=True)):
            figure = f"{probe.parameter}: they change none of the plain server's answers"
            return Check(NAME, cell.name, ELSEWHERE, figure)
    found = differences(greedy, served, prompts, judge)
    check = judged(NAME, cell.name, found, served, tie)
    check = with_drafts(check, served)
    return check._replace(figure=f"{probe.parameter}: {check.figure}")
