"""A speedup as a product: how many tokens a step commits, and what each part of a step costs.

The speedup of a decoder over a reference is the ratio of their seconds per token, and a token's
seconds are a step's over its tokens:

    speedup = (t / t_ref) * (s_ref / s)

with t tokens a step and s seconds a step: steps commit every token of an output but the prefill's,
which no decode speedup counts. The seconds are sums of parts, so ln(s_ref / s) is shared
among the parts in proportion to the seconds that each adds:

    factor of part i = exp(-(s_i - s_ref,i) / L),    L = (s - s_ref) / ln(s / s_ref)

(the logarithmic mean Divisia index: Ang 2004, Energy Policy 32). The product is exact, and no
factor depends on the order in which the parts are named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fspad_bench.analysis.shares import StepTimes, alike, step_times
from fspad_bench.benchmark.record import Sample
from fspad_bench.benchmark.speeds import Pair

Factors = dict[str, float]


@dataclass(frozen=True)
class Chain:
    """A speedup and its factors, whose product it is.

    `tokens`, then each part of a step, or `step` where parts were not timed.
    `perfect_draft`: the speedup if every level drafted had been accepted, at the same cost;
    `free_draft`: that if drafting had taken no time. None: not known.
    """

    speedup: float
    factors: Factors
    perfect_draft: float | None
    free_draft: float | None


def chain(pairs: Sequence[Pair]) -> Chain | None:
    """Return the speedup of the pairs' decoder over their other side, as a product; None where a
    side's steps or their times are not known.
    """
    reference = step_times([pair.vanilla for pair in pairs])
    own = step_times([pair.decoder for pair in pairs])
    if reference is None or own is None:
        return None
    samples = [pair.decoder for pair in pairs]
    factors = {"tokens": own.tokens / reference.tokens, **_time_factors(reference, own)}
    speedup = math.prod(factors.values())
    return Chain(speedup, factors, _perfect(speedup, samples), _free(speedup, own))


def _time_factors(reference: StepTimes, own: StepTimes) -> Factors:
    before, after = alike(reference, own)
    if not before:
        return {"step": reference.seconds / own.seconds}
    mean = log_mean(sum(after.values()), sum(before.values()))
    return {part: math.exp((before[part] - after[part]) / mean) for part in before}


def log_mean(a: float, b: float) -> float:
    """Return (a - b) / ln(a / b), which is a where both are equal."""
    ratio = a / b
    return a if math.isclose(ratio, 1, rel_tol=1e-9) else (a - b) / math.log(ratio)


def _perfect(speedup: float, samples: Sequence[Sample]) -> float | None:
    if any(sample.depths is None and any(sample.drafted) for sample in samples):
        return None
    committed = sum(sum(sample.committed) for sample in samples)
    steps = sum(len(sample.committed) for sample in samples)
    levels = sum(sum(sample.depths or ()) for sample in samples)
    return speedup * (steps + levels) / committed


def _free(speedup: float, own: StepTimes) -> float | None:
    if not own.parts:
        return None
    return speedup * own.seconds / (own.seconds - own.parts["draft"])
