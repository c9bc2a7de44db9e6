"""The generations that a row's figures are made of, and whether the decode clock saw all of their
decoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fspad_bench.benchmark.guards.prefill import hidden_work
from fspad_bench.benchmark.record import Key, Sample
from fspad_bench.benchmark.speeds import Pair, pairs_of


class Generations(NamedTuple):
    """A row's generations, the last of each prompt.

    `samples` are those that did not fail, `errors` counts the others, and `pairs` are those of
    `samples` with vanilla's. `hidden_work` is the decoding that ran before the decode clock, in
    words; empty where none did.
    """

    samples: list[Sample]
    errors: int
    pairs: list[Pair]
    hidden_work: str


def generations_of(key: Key, samples: Iterable[Sample], vanilla: Sequence[Sample]) -> Generations:
    """Return the generations of a row among its `samples`, paired with `vanilla`'s.

    A foreign engine hides no work: it has a prefill of its own, whose work no vanilla here does.
    """
    every = latest(samples)
    complete = [sample for sample in every if not sample.error]
    pairs = pairs_of(vanilla, complete)
    hidden = "" if key.verification == "foreign" else hidden_work(pairs)
    return Generations(complete, len(every) - len(complete), pairs, hidden)


def latest(samples: Iterable[Sample]) -> list[Sample]:
    """Return the last sample of each prompt, turn and repeat: a resumed unit measures vanilla
    again.
    """
    return list({(s.sample, s.turn, s.repeat): s for s in samples}.values())
