"""Repeats of a run: how much its figures spread, and whether its outputs are the same each time.

Repeats share their noise, so that sampled output is the same in each, as greedy output is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean, stdev
from typing import Any, TypeVar

from fspad_bench.benchmark.record import Finding, Key, Sample
from fspad_bench.benchmark.speeds import Pair, speedup, tokens_per_step
from fspad_bench.benchmark.times import times

T = TypeVar("T")
Row = dict[str, Any]


def repeats_differ(key: Key, samples: Sequence[Sample]) -> Iterator[Finding]:
    """Yield a finding where outputs that must be vanilla's are not the same each time."""
    outputs: dict[tuple[str, int], set[tuple[int, ...]]] = {}
    for sample in samples:
        outputs.setdefault((sample.sample, sample.turn), set()).add(tuple(sample.tokens))
    differing = sum(len(texts) > 1 for texts in outputs.values())
    if differing and key.identical:
        text = f"{differing} outputs are not the same each time: something is not determined"
        yield Finding(key.hash, "repeats", text)


def spread(samples: Sequence[Sample], pairs: Sequence[Pair], *, hidden: bool) -> Row:
    """Return the number of repeats, and the coefficients of variation of their figures; `hidden`:
    work was done before the decode clock, so that no figure of that clock has one.

    Only outputs that every repeat has count, and pairs likewise.
    """
    by_repeat = _complete({(s.sample, s.turn, s.repeat): s for s in samples})
    own = {(p.decoder.sample, p.decoder.turn, p.decoder.repeat): p for p in pairs}
    paired = [] if hidden else _complete(own)
    return {
        "repeats": len({sample.repeat for sample in samples}),
        "tokens_per_second_cv": _cv(
            times(part, hidden=hidden)["tokens_per_second"] for part in by_repeat
        ),
        "tokens_per_step_cv": _cv(tokens_per_step(part).value for part in by_repeat),
        "speedup_cv": _cv(speedup(part, prefill=False).value for part in paired),
    }


def _complete(placed: dict[tuple[str, int, int], T]) -> list[list[T]]:
    """Return what stands at (sample, turn, repeat) by repeat, without what some repeat lacks."""
    repeats = sorted({repeat for _, _, repeat in placed})
    places = dict.fromkeys((sample, turn) for sample, turn, _ in placed)
    shared = [place for place in places if all((*place, r) in placed for r in repeats)]
    return [[placed[*place, repeat] for place in shared] for repeat in repeats]


def _cv(values: Iterable[float | None]) -> float | None:
    """Return the standard deviation over the mean; None for one value, or where one is unknown."""
    every = list(values)
    known = [value for value in every if value is not None and not math.isnan(value)]
    if len(known) < max(2, len(every)):
        return None
    return stdev(known) / fmean(known)
