"""Where the time of a step goes: drafting, the target's forward, verification, the rest.

- A step is a full forward of the target while decoding.
- The rest is what no part accounts for: `begin` and `observe` of the drafter, the cache, the host.
  Records before schema 4 did not time verification, which is part of the rest there.
- Where a step runs whole on a device its parts are not timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fspad_bench.benchmark.record import Sample
from fspad_bench.core.protocols import Generation

Parts = dict[str, float]


@dataclass(frozen=True)
class StepTimes:
    """Means over the steps of some generations.

    `parts` sum to `seconds`; they are empty where they were not timed. `nodes` counts the root.
    """

    steps: int
    tokens: float
    nodes: float
    seconds: float
    parts: Parts

    def share(self, part: str) -> float:
        return self.parts[part] / self.seconds


def steps_of(sample: Sample) -> Iterator[tuple[int, int]]:
    """Yield the nodes of each step's tree, root included, and the length of the text before it."""
    prefix = sample.prompt_tokens
    drafted = sample.drafted or [0] * len(sample.committed)  # vanilla of an old record
    for nodes, committed in zip(drafted, sample.committed, strict=False):
        yield 1 + nodes, prefix
        prefix += committed


def step_times(samples: Sequence[Sample | Generation]) -> StepTimes | None:
    """Return the means of a step, None where neither steps nor their time are known."""
    steps = sum(sample.forwards for sample in samples)
    seconds = sum(sample.decode_seconds for sample in samples)
    committed = sum(sum(sample.committed) for sample in samples)
    if not (steps and seconds and committed):
        return None
    drafted = sum(sum(sample.drafted) for sample in samples)
    count = sum(len(sample.committed) for sample in samples)
    parts = {name: part / steps for name, part in _parts(samples, seconds).items()}
    return StepTimes(steps, committed / steps, 1 + drafted / count, seconds / steps, parts)


def alike(one: StepTimes, other: StepTimes) -> tuple[Parts, Parts]:
    """Return the parts that both steps know; what only one of them knows is part of its rest.

    Empty where one of them knows none.
    """
    if not (one.parts and other.parts):
        return {}, {}
    names = [name for name in one.parts if name in other.parts]
    return _merged(one.parts, names), _merged(other.parts, names)


def _merged(parts: Parts, names: Sequence[str]) -> Parts:
    kept = {name: parts[name] for name in names}
    kept["rest"] += sum(seconds for name, seconds in parts.items() if name not in names)
    return kept


def _parts(samples: Sequence[Sample | Generation], seconds: float) -> Parts:
    draft = _total([sample.draft_seconds for sample in samples])
    forward = _total([sample.score_seconds for sample in samples])
    verification = _total([sample.verify_seconds for sample in samples])
    if draft is None or not forward:  # records before 2026-11-23 have 0 for what is not known
        return {}
    parts = {"draft": draft, "forward": forward}
    if verification is not None:
        parts["verification"] = verification
    return {**parts, "rest": seconds - sum(parts.values())}


def _total(times: Sequence[float | None]) -> float | None:
    known = [time for time in times if time is not None]
    return sum(known) if len(known) == len(times) else None
