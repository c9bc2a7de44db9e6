"""The speedup that a cost model predicts from what a decoder accepted.

    modelled = t * s_vanilla / (c(n) + draft + all else)

with t tokens a step, vanilla's seconds a step, and c(n), the seconds of a forward of n nodes as
they were measured before the run to size adaptive trees. Drafting and all else are the run's own,
so that the model differs from what was measured by one thing: forwards that cost more in a run than
by themselves, or less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fspad_bench.analysis.factors import Chain
from fspad_bench.analysis.shares import step_times, steps_of
from fspad_bench.benchmark.record import Sample
from fspad_bench.drafts.sizing.costs import SIZES, TINY, Costs
from fspad_bench.util.errors import BenchError

NAMES = {"forward": "forward_per_token", "verify": "longer"}  # the latter in records of schema 1


def modelled(chain: Chain, samples: Sequence[Sample], costs: Mapping[str, Any]) -> float | None:
    """Return the modelled speedup; None where parts of a step were not timed, or the recorded costs
    hold no forwards, or those that are made up for the target `tiny`.
    """
    own = step_times(samples)
    curve = next(_curves(costs), None)
    if own is None or not own.parts or curve is None or curve.forward == TINY.forward:
        return None
    every = (step for sample in samples for step in steps_of(sample))
    forward = sum(curve.forward_seconds(nodes, prefix) for nodes, prefix in every) / own.steps
    return chain.speedup * own.seconds / (own.seconds - own.parts["forward"] + forward)


def _curves(facts: object) -> Iterator[Costs]:
    """Yield the costs of forwards in what a decoder recorded, however deep they lie there."""
    if not isinstance(facts, Mapping):
        return
    for name, per_token in NAMES.items():
        if isinstance(facts.get(name), list):
            slopes = facts.get(per_token) or [0.0] * len(SIZES)
            try:
                yield Costs.of(
                    {
                        "forward": facts[name],
                        "overhead": 0.0,
                        "per_level": 0.0,
                        "forward_per_token": slopes,
                    }
                )
            except BenchError:  # another version's, or damaged
                return
    for part in facts.values():
        yield from _curves(part)
