"""Speedups and tokens per step of a row, with their intervals, from its generations.

The turns of a prompt are one unit of resampling. What cannot be known is None, or nan in an
interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fspad_bench.benchmark import stats
from fspad_bench.benchmark.record import Sample
from fspad_bench.benchmark.stats import Cost, Interval, ratio_interval, ratio_of_mean_speeds
from fspad_bench.benchmark.times import decoded

FEWEST_PROMPTS = 5  # for an interval
NO_INTERVAL = Interval(math.nan, math.nan, math.nan)


class Pair(NamedTuple):
    """Generations of vanilla and of a decoder, of the same prompt and noise, interleaved with each
    other.
    """

    vanilla: Sample
    decoder: Sample

    @property
    def differs(self) -> bool:
        return self.vanilla.tokens != self.decoder.tokens


def pairs_of(reference: Sequence[Sample], decoder: Sequence[Sample]) -> list[Pair]:
    """Return the pairs of generations that were interleaved with each other and did not fail."""
    partners = {s.place: s for s in reference if not s.error}
    return [Pair(partners[s.place], s) for s in decoder if not s.error and s.place in partners]


def speedup(pairs: Sequence[Pair], *, prefill: bool) -> Interval:
    """Return vanilla's seconds per token over the decoder's. The turns of a prompt are one unit of
    resampling.

    The speedup is unknown where a time is: an external engine may not report its decode time. A
    pair of which one decoded nothing after its prefill has no decode speed.
    """
    usable = [p for p in pairs if prefill or (decoded(p.vanilla) and decoded(p.decoder))]
    prompts = _by_question(usable)
    vanilla = [cost_of([pair.vanilla for pair in turns], prefill=prefill) for turns in prompts]
    decoder = [cost_of([pair.decoder for pair in turns], prefill=prefill) for turns in prompts]
    if not prompts or not all(cost.seconds and cost.tokens for cost in (*vanilla, *decoder)):
        return NO_INTERVAL
    return if_enough(stats.speedup(vanilla, decoder), len(prompts))


def spec_bench(pairs: Sequence[Pair]) -> Interval:
    """Return Spec-Bench's figure: the ratio of the means over questions of tokens per second.

    As in its script a question's turns are summed first, and the prefill counts with its token.
    """
    questions = _by_question(pairs)
    vanilla = [cost_of([pair.vanilla for pair in turns], prefill=True) for turns in questions]
    decoder = [cost_of([pair.decoder for pair in turns], prefill=True) for turns in questions]
    if not questions or not all(cost.seconds and cost.tokens for cost in (*vanilla, *decoder)):
        return NO_INTERVAL
    return if_enough(ratio_of_mean_speeds(vanilla, decoder), len(questions))


def _by_question(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Return the pairs of each question, all its turns together."""
    questions: dict[str, list[Pair]] = {}
    for pair in pairs:
        questions.setdefault(pair.decoder.sample, []).append(pair)
    return list(questions.values())


def cost_of(samples: Sequence[Sample], *, prefill: bool) -> Cost:
    """Return the seconds of some generations and the tokens that they made: without the prefill,
    without its token.
    """
    seconds = sum(s.decode_seconds + prefill * s.prefill_seconds for s in samples)
    tokens = sum(len(s.tokens) if prefill else decoded(s) for s in samples)
    return Cost(seconds, tokens + sum(s.overshoot or 0 for s in samples))


def tokens_per_step(samples: Sequence[Sample]) -> Interval:
    """Return tokens per full forward of the target.

    The turns of a prompt are one unit of resampling.
    """
    prompts: dict[str, list[Sample]] = {}
    for sample in samples:
        prompts.setdefault(sample.sample, []).append(sample)
    counts = []
    for group in prompts.values():
        forwards = sum(sample.forwards for sample in group)
        committed = sum(sum(sample.committed) for sample in group)
        if forwards and committed:  # a foreign engine may tell one and not the other
            counts.append((committed, forwards))
    if not counts:
        return NO_INTERVAL
    least = 1.0 if all(committed >= forwards for committed, forwards in counts) else 0.0
    return if_enough(ratio_interval(counts), len(counts)).within(least)


def if_enough(interval: Interval, prompts: int) -> Interval:
    """Drop the ends of an interval of fewer than `FEWEST_PROMPTS`: a bootstrap would make it far
    too narrow.
    """
    if prompts >= FEWEST_PROMPTS:
        return interval
    return Interval(interval.value, math.nan, math.nan)


def intervals(
    samples: Sequence[Sample], pairs: Sequence[Pair], *, hidden: bool
) -> dict[str, Interval]:
    """Return the figures that have an interval, by name; `hidden`: work was done before the decode
    clock, so there is no decode speedup.
    """
    return {
        "tokens_per_step": tokens_per_step(samples),
        "speedup": NO_INTERVAL if hidden else speedup(pairs, prefill=False),
        "speedup_end_to_end": speedup(pairs, prefill=True),
    }


def named(name: str, interval: Interval) -> dict[str, float | None]:
    """Return an interval under its names in JSON: the value's, and those of its ends."""
    return {
        name: _known(interval.value),
        f"{name}_low": _known(interval.low),
        f"{name}_high": _known(interval.high),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
