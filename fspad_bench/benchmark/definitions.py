"""Tokens per step and acceptance under each definition that the field uses, by name.

The pooled figure is `speeds.tokens_per_step`. `docs/definitions.md` says who uses which, with an
example worked by hand. The prompt, all its turns and repeats together, is the unit of resampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fspad_bench.benchmark import stats
from fspad_bench.benchmark.record import Sample
from fspad_bench.benchmark.speeds import NO_INTERVAL, if_enough
from fspad_bench.benchmark.stats import Interval

Prompts = list[list[Sample]]
FEWEST_CATEGORIES = 2  # one category's mean is the mean of requests


def definitions(samples: Sequence[Sample], pooled: Interval) -> dict[str, Interval]:
    """Return every figure by its name in JSON; `pooled` is the row's tokens per step."""
    prompts = _by_prompt(samples)
    return {
        "tokens_per_step_requests": _mean_of_requests(prompts),
        "tokens_per_step_categories": _mean_of_categories(prompts),
        "tokens_per_step_without_last": _without_last(prompts),
        "tokens_per_drafting_step": _of_drafting_steps(prompts),
        "accepted_per_step": Interval(pooled.value - 1, pooled.low - 1, pooled.high - 1),
        "acceptance_rate": _acceptance_rate(prompts),
    }


def accept_lengths(sample: Sample) -> list[int]:
    """Return one entry per full forward of the target, whose sum are the tokens committed.

    Empty where forwards or steps are not known. Steps that shared a forward are one entry.
    """
    steps = sample.committed
    last = sample.forwards - 1
    if last < 0 or not steps:
        return []
    kept = [*steps[:last], sum(steps[last:])]
    return kept + [0] * (sample.forwards - len(kept))


def _mean_of_requests(prompts: Prompts) -> Interval:
    """Return the mean over prompts of each one's own tokens per step, its turns pooled."""
    return _ratio((tokens / steps, 1) for tokens, steps in map(_pooled, prompts) if steps)


def _mean_of_categories(prompts: Prompts) -> Interval:
    """Return the mean over categories of their means of requests.

    Unknown where a prompt has no category, or all have the same.
    """
    counts = [(samples[0].category, *_pooled(samples)) for samples in prompts]
    values = [(category, tokens / steps) for category, tokens, steps in counts if steps]
    categories = {category for category, _ in values}
    if "" in categories or len(categories) < FEWEST_CATEGORIES:
        return NO_INTERVAL
    return if_enough(stats.mean_of_groups(values), len(values))


def _without_last(prompts: Prompts) -> Interval:
    """Return the pooled tokens per step without the last step of each generation, which the limit
    or the end of the answer may have cut.
    """
    lengths = [[n for s in samples for n in accept_lengths(s)[:-1]] for samples in prompts]
    return _ratio((sum(steps), len(steps)) for steps in lengths)


def _of_drafting_steps(prompts: Prompts) -> Interval:
    """Return the pooled tokens per step of the steps that drafted something."""
    drafting = [[n for n, drafted in _steps(samples) if drafted] for samples in prompts]
    return _ratio((sum(steps), len(steps)) for steps in drafting)


def _acceptance_rate(prompts: Prompts) -> Interval:
    """Return accepted over drafted tokens. A step accepts all that it commits but the bonus."""
    steps = [_steps(samples) for samples in prompts]
    rate = _ratio((sum(max(0, n - 1) for n, _ in own), sum(d for _, d in own)) for own in steps)
    return rate.within(0.0, 1.0)


def _steps(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Return (committed, drafted) of each step of generations that tell both."""
    told = [sample for sample in samples if len(sample.committed) == len(sample.drafted)]
    return [pair for s in told for pair in zip(s.committed, s.drafted, strict=True)]


def _pooled(samples: Sequence[Sample]) -> tuple[int, int]:
    lengths = [n for sample in samples for n in accept_lengths(sample)]
    return sum(lengths), len(lengths)


def _ratio(parts: Iterable[tuple[float, float]]) -> Interval:
    """Return the ratio of the sums, one pair a prompt; prompts without a second part have none."""
    known = [(first, second) for first, second in parts if second]
    return if_enough(stats.ratio_interval(known), len(known)) if known else NO_INTERVAL


def _by_prompt(samples: Sequence[Sample]) -> Prompts:
    prompts: dict[str, list[Sample]] = {}
    for sample in samples:
        prompts.setdefault(sample.sample, []).append(sample)
    return list(prompts.values())
