"""The least tokens per step of a decoder that has not changed, and the loss that this reveals.

The same decoder takes the same steps on the same prompts, unless rounding is another one, as on
another machine: then an output may go its own way from some token on. A draw of such a run lets
each output do so by chance, and continues it with steps from elsewhere in the measured run.

- In float32 at most one output in 5,000 tokens diverges (see `verdict`). The chance is proportional
  to the rounding error of the precision: none to speak of in float64, one in bfloat16.
- A decoder that sizes its trees by the machine, or learns across prompts, may take other steps from
  the first token on.
- The sum of all steps hides a small loss: one output that diverges may change it by as much. The
  number of outputs that take more steps than before does not, since few outputs diverge at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fspad_bench.benchmark.verdict import FLOAT32_TIES

DRAWS = 20_000
FALSE_ALARM = 1e-3
POWER = 0.9
DIGITS = 1000  # a bound has three decimals
BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}  # of a significand


class Bound(NamedTuple):
    """The measured figure, the least that an unchanged decoder reaches, and the loss it reveals.

    An unchanged decoder falls short of `least` with probability `FALSE_ALARM`; a decoder that loses
    `finds` tokens a step does with probability `POWER`.
    """

    measured: float
    least: float
    finds: float


def bound_of(steps: Sequence[Sequence[int]], dtype: str, *, is_free: bool = False) -> Bound:
    """Return the bound of a run by the tokens that each step of each output committed.

    `is_free`: the decoder may take other steps on the same text. Raises ValueError for no steps.
    """
    outputs = [list(output) for output in steps if output]
    if not outputs:
        raise ValueError("no output has a step")
    measured = sum(map(sum, outputs)) / sum(map(len, outputs))
    chance = 1.0 if is_free else divergence_chance(dtype)
    draws = unchanged_runs(outputs, chance)
    low = float(np.quantile(draws, FALSE_ALARM, method="lower"))
    least = math.floor(low * DIGITS) / DIGITS
    loss = float(np.quantile(draws, POWER)) - least
    return Bound(measured, least, max(1, math.ceil(loss * DIGITS)) / DIGITS)


def most_diverging(outputs: Sequence[Sequence[int]], dtype: str) -> int:
    """Return a number of outputs: rounding changes more with probability `FALSE_ALARM` at most."""
    chance = divergence_chance(dtype)
    probability = np.ones(1)  # [n]: of each number of outputs that diverge, among those so far
    for output in outputs:
        same = (1 - chance) ** sum(output)
        probability = np.convolve(probability, [same, 1 - same])
    more = 1 - np.cumsum(probability)  # [n]: of more than each number
    return int(np.argmax(more <= FALSE_ALARM))


def divergence_chance(dtype: str) -> float:
    """Return the chance that a token is the first of an output that rounding changes."""
    bits = BITS.get(dtype, min(BITS.values()))
    return min(1.0, 2.0 ** (BITS["float32"] - bits) / FLOAT32_TIES)


def unchanged_runs(
    outputs: Sequence[Sequence[int]], chance: float, *, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """Return [draws]: tokens per step of runs in which each token diverges with this chance."""
    rng = np.random.default_rng(seed)
    pool = np.concatenate([np.asarray(output) for output in outputs])
    tokens = np.cumsum(np.concatenate([pool, pool]))  # [2S]: the steps in a circle
    total = np.zeros(draws)
    for output in outputs:
        total += _drawn_steps(np.asarray(output), chance, tokens, rng, draws)
    return pool.sum() / total


def _drawn_steps(
    output: np.ndarray, chance: float, tokens: np.ndarray, rng: np.random.Generator, draws: int
) -> np.ndarray:
    """Return [draws]: the steps that one output takes, the rest of some from elsewhere."""
    reached = np.cumsum(output)
    length = int(reached[-1])
    with np.errstate(divide="ignore"):
        first = np.floor(np.log(rng.random(draws)) / np.log1p(-chance))  # tokens before it
    steps = np.full(draws, float(len(output)))
    diverges = first < length
    kept = np.searchsorted(reached, first[diverges], side="right")  # whole steps before it
    left = length - np.where(kept > 0, reached[kept - 1], 0)
    start = rng.integers(len(tokens) // 2, size=len(kept))
    before = np.where(start > 0, tokens[start - 1], 0)
    end = np.searchsorted(tokens, before + left, side="left")
    steps[diverges] = kept + (np.minimum(end, len(tokens) - 1) - start + 1)
    return steps
