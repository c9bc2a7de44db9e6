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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from scipy import stats

from fspad_bench.benchmark.evidence import distributions
from fspad_bench.benchmark.uniform import (
    ALPHA,
    POWER,
    Transformed,
    offsets,
    transform,
    uniformity,
)
from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Drafter, Limit, as_engine
from fspad_bench.core.sampling import Dice, Sampler
from fspad_bench.decoders.build import Decoder
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless.checks import ELSEWHERE, VACUOUS, Check
from fspad_bench.lossless.exact import PROMPT, product_distribution, reason_it_needs_more
from fspad_bench.lossless.oracle import Distribution, RememberingSampler
from fspad_bench.lossless.rounding import is_precise
from fspad_bench.lossless.scripted import ScriptedTarget
from fspad_bench.util.errors import BenchError

SAMPLER = Sampler(0.7, top_p=0.9)
VOCABULARY = 4
SALT = 5
LENGTH = 3


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
    ((p, draws),) = loop_p_values(target, drafter, [distance])
    figure = f"p {p:.2g}, {draws} draws: TV {distance:g} detectable"
    return Check.of("G-test", label, p >= ALPHA, figure, f"p {ALPHA:.0e}")


def loop_p_values(
    target: ScriptedTarget, drafter: Drafter, distances: Iterable[float]
) -> Iterator[tuple[float, int]]:
    """Yield the p-value of the production loop's outputs and the number of draws.

    There are enough draws to reveal each of `distances`, which descend; earlier draws count again.
    """
    expected = product_distribution(target, SAMPLER, LENGTH)
    limit = Limit(LENGTH)
    remembering = RememberingSampler.of(SAMPLER)
    counts: Counter[tuple[int, ...]] = Counter()
    for distance in distances:
        draws = draws_needed(len(expected), distance)
        for i in range(counts.total(), draws):
            sampler = remembering.streamed(f"draw {i}")
            counts[tuple(generate(target, drafter, sampler, PROMPT, limit).tokens)] += 1
        yield g_test(expected, counts), draws


def check_pit(
    decoder: Decoder,
    target: TransformersTarget,
    prompts: Sequence[list[int]],
    tokens: int,
    sampler: Sampler = SAMPLER,
) -> Check:
    """Test one decoder, at T = 0.7 and top-p 0.9 unless another sampler is given:

    Kolmogorov-Smirnov for each offset, and the far tail of all in float32 and float64: elsewhere
    rounding moves tokens across the edge of a cut.
    """
    drafted: list[int] = []
    try:
        transformed = pit(decoder, target, prompts, tokens, drafted, sampler)
    except BenchError as error:
        if decoder.verification != "foreign":
            raise
        figure = f"the engine refuses to sample: {error.message}"
        return Check("PIT", decoder.label, ELSEWHERE, figure)
    result = uniformity(transformed, tail=is_precise(target))
    if result is None:
        figure = f"{len(transformed)} tokens are too few for any offset"
        return Check("PIT", decoder.label, VACUOUS, figure)
    if drafts(decoder) and not any(drafted):
        return Check("PIT", decoder.label, VACUOUS, "nothing was ever drafted")
    counts = "/".join(map(str, result.counts))
    figure = f"p {result.p:.2g} at {result.place} of {counts} tokens by offset; "
    figure += f"shifts of {result.shift:.2f} detectable"
    return Check.of("PIT", decoder.label, result.holds, figure, f"p {ALPHA:.0e}")


def drafts(decoder: Decoder) -> bool:
    """Return whether a decoder should draft: in our loop, and not vanilla."""
    return decoder.drafter is not None and not isinstance(decoder.drafter, Vanilla)


def pit(
    decoder: Decoder,
    target: TransformersTarget,
    prompts: Sequence[list[int]],
    tokens: int,
    drafted: list[int] | None = None,
    sampler: Sampler = SAMPLER,
) -> list[Transformed]:
    """Transform every decoded token by the target's own teacher-forced distributions.

    `drafted` receives the number of drafted tokens of every step.
    """
    transformed = []
    for i, prompt in enumerate(prompts):
        own = sampler.streamed(f"pit {i}")
        generation = decoder.generate(target, own, prompt, Limit(tokens))
        if drafted is not None:
            drafted += generation.drafted
        rows = distributions(target, prompt, generation.tokens, own)
        dice = Dice(own.streamed(f"pit uniforms {i}").key, 0)
        places = offsets(generation.committed, len(generation.tokens))
        for p, token, offset in zip(rows, generation.tokens, places, strict=True):
            transformed.append(Transformed(transform(p, token, dice), offset))
    return transformed
