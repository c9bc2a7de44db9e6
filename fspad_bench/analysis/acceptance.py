"""Which drafted tokens were accepted: by depth, by rank, by the place in the output.

- By depth: of the steps that accepted d - 1 drafted tokens and had a draft for the next one, the
  share that accepted it. A draft that ended there refused nothing.
- By rank: whether the accepted child was the first of its siblings, the second, ... in the order in
  which the drafter added them: the most probable first, or as they were drawn.
- Records before schema 4 hold neither. Of them a step is thought to have had a draft at each depth
  up to its number of drafted tokens, so rates by depth are at least what is said; the last step of
  an output, which the limit may have cut, refuses nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fspad_bench.benchmark.record import Sample

FIRST_BIN = 32  # tokens; each further bin of positions ends at twice the end of the one before


class Depth(NamedTuple):
    """Steps that had a draft at this depth, all before it accepted, and those that accepted it."""

    depth: int
    offered: int
    accepted: int

    @property
    def rate(self) -> float:
        return self.accepted / self.offered


class Position(NamedTuple):
    """The steps whose first token is one of the output's tokens `first` to `last`, from 1 on."""

    first: int
    last: int
    steps: int
    tokens: int

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / self.steps


@dataclass(frozen=True)
class Acceptance:
    """`ranks[r]`: accepted tokens that had r earlier siblings, None where that is not recorded;
    `committed[k]`: steps that committed k + 1 tokens. Without `is_exact` rates by depth are lower
    bounds.
    """

    depths: list[Depth]
    is_exact: bool
    ranks: list[int] | None
    positions: list[Position]
    committed: list[int]


class Walk(NamedTuple):
    """The drafted tokens that a step accepted, and whether it had a draft for the next."""

    accepted: int
    has_refused: bool


def acceptance(samples: Sequence[Sample]) -> Acceptance:
    """Return what the steps of these generations accepted."""
    is_exact = all(sample.ranks is not None or not any(sample.drafted) for sample in samples)
    return Acceptance(
        depths=_depths([walk for sample in samples for walk in _walks(sample)], is_exact=is_exact),
        is_exact=is_exact,
        ranks=_ranks(samples) if is_exact else None,
        positions=_positions(samples),
        committed=_counts([count - 1 for s in samples for count in s.committed if count]),
    )


def _walks(sample: Sample) -> Iterator[Walk]:
    if sample.ranks is not None and sample.refused is not None:
        for ranks, refused in zip(sample.ranks, sample.refused, strict=True):
            yield Walk(len(ranks), refused > 0)
        return
    last = len(sample.committed) - 1
    for step, (count, drafted) in enumerate(zip(sample.committed, sample.drafted, strict=False)):
        accepted = max(0, count - 1)
        yield Walk(accepted, step < last and drafted > accepted)


def _depths(walks: Sequence[Walk], *, is_exact: bool) -> list[Depth]:
    """Return the depths at which something was drafted; where that is not recorded, those at which
    something was accepted.
    """
    refusing = [walk.accepted + (walk.has_refused and is_exact) for walk in walks]
    deepest = max(refusing, default=0)
    depths = []
    for depth in range(1, deepest + 1):
        accepted = sum(walk.accepted >= depth for walk in walks)
        refused = sum(walk.accepted == depth - 1 and walk.has_refused for walk in walks)
        depths.append(Depth(depth, accepted + refused, accepted))
    return depths


def _ranks(samples: Sequence[Sample]) -> list[int]:
    return _counts([rank for s in samples for ranks in s.ranks or () for rank in ranks])


def _counts(values: Sequence[int]) -> list[int]:
    """Return how often 0, 1, 2, ... occur."""
    counter = Counter(values)
    return [counter[value] for value in range(max(values, default=-1) + 1)]


def _positions(samples: Sequence[Sample]) -> list[Position]:
    steps: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    for sample in samples:
        position = 2  # the first token is the prefill's
        for count in sample.committed:
            number = _bin(position)
            steps[number] += 1
            tokens[number] += count
            position += count
    return [
        Position(1 + (FIRST_BIN << n - 1 if n else 0), FIRST_BIN << n, steps[n], tokens[n])
        for n in sorted(steps)
    ]


def _bin(position: int) -> int:
    """Return the bin of a position: 0 for 1 to 32, 1 for 33 to 64, 2 for 65 to 128, ..."""
    return ((position - 1) // FIRST_BIN).bit_length()
