"""Tests of a law from draws, where it cannot be enumerated: with the power stated and the seeds fixed.

The G-test counts whole outputs of the production loop, noise and all, against the exact law of a scripted target.
The probability integral transform (PIT) needs no small vocabulary: with the tokens of a row in descending order of p,
u = F(before y) + U p(y) of every emitted y is uniform if and only if y was drawn from p. It is tested apart for each
offset in the round, as an error of the bonus token shows only where bonus tokens stand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from fspad_bench.core.loop import Drafter, Limit, generate
from fspad_bench.core.sampling import Dice, Sampler
from fspad_bench.decoders.build import Method
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.errors import BenchError
from fspad_bench.lossless.exact import PROMPT, product_law
from fspad_bench.lossless.oracle import Law
from fspad_bench.lossless.report import ELSEWHERE, VACUOUS, Check
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.lossless.uniform import ALPHA, POWER, shift_seen, transform

SAMPLER = Sampler(0.7, top_p=0.9)
VOCABULARY = 4
LENGTH = 3
FEWEST = 100  # draws of a stratum


def draws_needed(cells: int, distance: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """How many draws show any law at this total variation: the noncentrality is at least 4 N TV^2."""
    critical = stats.chi2.ppf(1 - alpha, cells - 1)
    low = 0.0
    high = 1e4
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (
            (low, middle) if stats.ncx2.sf(critical, cells - 1, middle) >= power else (middle, high)
        )
    return math.ceil(high / (4 * distance**2))


def g_test(law: Law, counts: Counter[tuple[int, ...]]) -> float:
    """The p-value of counts under a law; cells of expectation below 5 are pooled, an impossible output gives 0."""
    if any(output not in law for output in counts):
        return 0.0
    total = sum(counts.values())
    kept = [output for output, p in law.items() if p * total >= 5]
    observed = [counts[output] for output in kept]
    expected = [law[output] * total for output in kept]
    if total - sum(expected) > 1e-6 * total:
        observed = [*observed, total - sum(observed)]
        expected = [*expected, total - sum(expected)]
    g = 2 * sum(o * math.log(o / e) for o, e in zip(observed, expected, strict=True) if o)
    return float(stats.chi2.sf(g, len(observed) - 1))


def check_law(label: str, make: Callable[[ScriptedTarget], Drafter], distance: float) -> Check:
    """The G-test of three tokens, as many draws as show this total variation with 99% probability."""
    try:
        target = ScriptedTarget(VOCABULARY, 5)
        drafter = make(target)
        if not hasattr(drafter, "propose"):
            raise TypeError("not one of our loop's drafters")
    except Exception:
        return Check(
            "G-test", label, ELSEWHERE, "cannot stand on a script: exact law on tiny, and PIT"
        )
    p, draws = law_p(target, drafter, distance)
    return Check.of(
        "G-test",
        label,
        p >= ALPHA,
        f"p {p:.2g}, {draws} draws: TV {distance:g} seen",
        f"p {ALPHA:.0e}",
    )


def law_p(target: ScriptedTarget, drafter: Drafter, distance: float) -> tuple[float, int]:
    """The p-value of the production loop's outputs, and the number of draws behind it."""
    law = product_law(target, SAMPLER, LENGTH)
    draws = draws_needed(len(law), distance)
    limit = Limit(LENGTH)
    counts = Counter()
    for i in range(draws):
        counts[
            tuple(generate(target, drafter, SAMPLER.streamed(f"draw {i}"), PROMPT, limit).tokens)
        ] += 1
    return g_test(law, counts), draws


class Transformed(NamedTuple):
    """u of an emitted token, and its offset in the round that committed it."""

    u: float
    offset: int


def check_pit(
    method: Method, target: TransformersTarget, prompts: Sequence[list[int]], tokens: int
) -> Check:
    """PIT of one decoder at T = 0.7, top-p 0.9: Kolmogorov-Smirnov a stratum, and the far tail of all."""
    try:
        found = pit(method, target, prompts, tokens)
    except BenchError as error:
        if method.verification != "foreign":
            raise
        return Check(
            "PIT", method.label, ELSEWHERE, f"the engine refuses to sample: {error.message}"
        )
    strata = stratified(found)
    tested = {offset: us for offset, us in strata.items() if len(us) >= FEWEST}
    if not tested:
        return Check(
            "PIT", method.label, VACUOUS, f"{len(found)} tokens are too few for any offset"
        )
    least = {offset: float(stats.kstest(us, "uniform").pvalue) for offset, us in tested.items()}
    tail = sum(x.u > 1 - 1e-3 for x in found)
    least["tail"] = float(stats.binomtest(tail, len(found), 1e-3).pvalue)
    where = min(least, key=least.get)
    fewest = min(map(len, tested.values()))
    counts = "/".join(str(len(us)) for us in strata.values())
    figure = f"p {least[where]:.2g} at {where} of {counts} tokens by offset; shifts of {shift_seen(fewest):.2f} seen"
    return Check.of("PIT", method.label, least[where] >= ALPHA, figure, f"p {ALPHA:.0e}")


def stratified(found: Sequence[Transformed]) -> dict[int, list[float]]:
    """u by offset; offsets too deep to have enough of their own count with the next shallower one."""
    strata: dict[int, list[float]] = {}
    pending: list[float] = []
    for offset in sorted({x.offset for x in found}, reverse=True):
        pending += [x.u for x in found if x.offset == offset]
        if len(pending) >= FEWEST or offset == 0:
            strata[offset] = pending
            pending = []
    return dict(sorted(strata.items()))


def pit(
    method: Method, target: TransformersTarget, prompts: Sequence[list[int]], tokens: int
) -> list[Transformed]:
    """Every decoded token of every prompt, transformed by the target's own teacher-forced laws."""
    found = []
    for i, prompt in enumerate(prompts):
        sampler = SAMPLER.streamed(f"pit {i}")
        made = method.generate(target, sampler, prompt, Limit(tokens))
        laws = teacher_forced(target, prompt, made.tokens, sampler)
        dice = Dice(sampler.streamed(f"pit uniforms {i}").key, 0)
        offsets = [0, *(offset for committed in made.committed for offset in range(committed))]
        offsets += [0] * (
            len(made.tokens) - len(offsets)
        )  # a foreign engine does not say its rounds
        for law, token, offset in zip(laws, made.tokens, offsets, strict=True):
            found.append(Transformed(transform(law, token, dice), offset))
    return found


@torch.inference_mode()
def teacher_forced(
    target: TransformersTarget, prompt: list[int], output: list[int], sampler: Sampler
) -> list[Tensor]:
    """The processed law before each token of `output`, from one stock forward without a cache."""
    ids = torch.tensor([[*prompt, *output[:-1]]], device=target.device)
    hidden = target.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[
        0, len(prompt) - 1 :
    ]
    return [sampler.law(row) for row in target.lm_head(hidden)]
