"""Statistical tests of a distribution from draws, with stated power and fixed seeds.

- The G-test counts whole outputs of the production loop, noise included, against the exact
  distribution of a scripted target.
- The probability integral transform (PIT) needs no small vocabulary: u of every emitted token is
  uniform if and only if the token was drawn from the target's p (`uniform`). Each offset within the
  step is tested on its own, since an error of the bonus token shows only where bonus tokens stand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from scipy import stats
from torch import Tensor

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Drafter, Limit, as_engine
from fspad_bench.core.sampling import Dice, Sampler
from fspad_bench.decoders.build import Decoder
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.errors import BenchError
from fspad_bench.lossless.exact import PROMPT, product_distribution, reason_it_needs_more
from fspad_bench.lossless.oracle import Distribution
from fspad_bench.lossless.report import ELSEWHERE, VACUOUS, Check
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.lossless.uniform import ALPHA, POWER, detectable_shift, transform

SAMPLER = Sampler(0.7, top_p=0.9)
VOCABULARY = 4
SALT = 5
LENGTH = 3
MIN_DRAWS = 100  # of a stratum
TAIL = 1e-3


def draws_needed(cells: int, distance: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """Return how many draws reveal any distribution at this total variation.

    The noncentrality of the G-test is at least 4 N TV^2; it is found by bisection.
    """
    critical = stats.chi2.ppf(1 - alpha, cells - 1)
    low = 0.0
    high = 1e4
    while high - low > 1e-3:
        middle = (low + high) / 2
        if stats.ncx2.sf(critical, cells - 1, middle) >= power:
            high = middle
        else:
            low = middle
    return math.ceil(high / (4 * distance**2))


def g_test(expected: Distribution, counts: Counter[tuple[int, ...]]) -> float:
    """Return the p-value of `counts` under `expected`.

    Cells that expect fewer than 5 draws are pooled. An output of probability 0 gives a p-value of
    0.
    """
    if any(output not in expected for output in counts):
        return 0.0
    total = sum(counts.values())
    large = [output for output, p in expected.items() if p * total >= 5]
    observed = [counts[output] for output in large]
    wanted = [expected[output] * total for output in large]
    if total - sum(wanted) > 1e-6 * total:
        observed = [*observed, total - sum(observed)]
        wanted = [*wanted, total - sum(wanted)]
    g = 2 * sum(o * math.log(o / w) for o, w in zip(observed, wanted, strict=True) if o)
    return float(stats.chi2.sf(g, len(observed) - 1))


def check_g_test(label: str, make: Callable[[ScriptedTarget], Any], distance: float) -> Check:
    """Run the G-test on three tokens, with enough draws to reveal this total variation at POWER."""
    reason = reason_it_needs_more(make)
    if reason:
        figure = f"needs more than a script ({reason}): exact distribution on tiny, and PIT"
        return Check("G-test", label, ELSEWHERE, figure)
    target = ScriptedTarget(VOCABULARY, SALT)
    drafter = make(target)
    if as_engine(drafter):
        return Check("G-test", label, ELSEWHERE, "an engine of its own, not in our loop: PIT")
    p, draws = loop_p_value(target, drafter, distance)
    figure = f"p {p:.2g}, {draws} draws: TV {distance:g} detectable"
    return Check.of("G-test", label, p >= ALPHA, figure, f"p {ALPHA:.0e}")


def loop_p_value(target: ScriptedTarget, drafter: Drafter, distance: float) -> tuple[float, int]:
    """Return the p-value of the production loop's outputs and the number of draws."""
    expected = product_distribution(target, SAMPLER, LENGTH)
    draws = draws_needed(len(expected), distance)
    limit = Limit(LENGTH)
    counts: Counter[tuple[int, ...]] = Counter()
    for i in range(draws):
        sampler = SAMPLER.streamed(f"draw {i}")
        counts[tuple(generate(target, drafter, sampler, PROMPT, limit).tokens)] += 1
    return g_test(expected, counts), draws


class Transformed(NamedTuple):
    """u of an emitted token, and its offset in the step that committed it."""

    u: float
    offset: int


def check_pit(
    decoder: Decoder, target: TransformersTarget, prompts: Sequence[list[int]], tokens: int
) -> Check:
    """Test one decoder at T = 0.7, top-p 0.9:

    Kolmogorov-Smirnov for each offset, and the far tail of all.
    """
    try:
        transformed = pit(decoder, target, prompts, tokens)
    except BenchError as error:
        if decoder.verification != "foreign":
            raise
        figure = f"the engine refuses to sample: {error.message}"
        return Check("PIT", decoder.label, ELSEWHERE, figure)
    strata = stratified(transformed)
    tested = {offset: us for offset, us in strata.items() if len(us) >= MIN_DRAWS}
    if not tested:
        figure = f"{len(transformed)} tokens are too few for any offset"
        return Check("PIT", decoder.label, VACUOUS, figure)
    p_values = _p_values(tested, transformed)
    worst = min(p_values, key=lambda place: p_values[place])
    counts = "/".join(str(len(us)) for us in strata.values())
    shift = detectable_shift(min(map(len, tested.values())))
    figure = f"p {p_values[worst]:.2g} at {worst} of {counts} tokens by offset; "
    figure += f"shifts of {shift:.2f} detectable"
    return Check.of("PIT", decoder.label, p_values[worst] >= ALPHA, figure, f"p {ALPHA:.0e}")


def _p_values(
    tested: dict[int, list[float]], transformed: Sequence[Transformed]
) -> dict[str, float]:
    """Return the p-value of every offset, and that of the `tail` above 1 - TAIL."""
    p_values = {
        str(offset): float(stats.kstest(us, "uniform").pvalue) for offset, us in tested.items()
    }
    tail = sum(x.u > 1 - TAIL for x in transformed)
    p_values["tail"] = float(stats.binomtest(tail, len(transformed), TAIL).pvalue)
    return p_values


def stratified(transformed: Sequence[Transformed]) -> dict[int, list[float]]:
    """Return u by offset.

    An offset with fewer than MIN_DRAWS tokens is pooled with the one before it.
    """
    strata: dict[int, list[float]] = {}
    pending: list[float] = []
    for offset in sorted({x.offset for x in transformed}, reverse=True):
        pending += [x.u for x in transformed if x.offset == offset]
        if len(pending) >= MIN_DRAWS or offset == 0:
            strata[offset] = pending
            pending = []
    return dict(sorted(strata.items()))


def pit(
    decoder: Decoder, target: TransformersTarget, prompts: Sequence[list[int]], tokens: int
) -> list[Transformed]:
    """Transform every decoded token by the target's own teacher-forced distributions."""
    transformed = []
    for i, prompt in enumerate(prompts):
        sampler = SAMPLER.streamed(f"pit {i}")
        generation = decoder.generate(target, sampler, prompt, Limit(tokens))
        distributions = teacher_forced(target, prompt, generation.tokens, sampler)
        dice = Dice(sampler.streamed(f"pit uniforms {i}").key, 0)
        offsets = [0]  # the prefill's token
        for committed in generation.committed:
            offsets += range(committed)
        offsets += [0] * (
            len(generation.tokens) - len(offsets)
        )  # a foreign engine's steps: unknown
        for p, token, offset in zip(distributions, generation.tokens, offsets, strict=True):
            transformed.append(Transformed(transform(p, token, dice), offset))
    return transformed


@torch.inference_mode()
def teacher_forced(
    target: TransformersTarget, prompt: list[int], output: list[int], sampler: Sampler
) -> list[Tensor]:
    """Return the processed distribution before each token of `output`.

    It takes one stock forward without a cache.
    """
    ids = torch.tensor([[*prompt, *output[:-1]]], device=target.device)
    hidden = target.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    logits = target.lm_head(hidden[0, len(prompt) - 1 :])  # [tokens of the output, V]
    return [sampler.distribution(row) for row in logits]
