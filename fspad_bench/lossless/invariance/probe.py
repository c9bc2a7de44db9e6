"""Ask the same row alone and in company, and name the first operation that changes it.

- A subject is a forward, or a kernel, that is given rows: each is asked for the bits of a row
  alone, its context cached one token at a time, and of the same row in a company.
- Companies: a `chain` of n tokens, all of whose rows are compared; a `tree` of n nodes, whose root
  is; a `branch`, which is that tree's deepest node; a `batch` of n sequences, and one in which all
  are `padded` on the left, whose first sequence is. Of a kernel that knows rows only, all are
  (`rows`).
- A company of one row is that row asked again: a subject that fails there does not repeat itself.
  The padded one shows what padding alone does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fspad_bench.lossless.invariance.trace import (
    Difference,
    Trace,
    changed_choices,
    first_difference,
)

CHAIN = "chain"
TREE = "tree"
BRANCH = "branch"
BATCH = "batch"
PADDED = "padded"
ROWS = "rows"
WHOLE = (CHAIN, ROWS)  # companies all of whose rows are compared
SIZES = (1, 2, 3, 4, 8, 16, 32, 64)


class Company(NamedTuple):
    """`rows` of a kind that are asked together."""

    kind: str
    rows: int

    @property
    def compared(self) -> int:
        """The number of its rows that are compared with the same alone."""
        return self.rows if self.kind in WHOLE else 1


@dataclass(frozen=True)
class Subject:
    """A forward or a kernel that is given rows, and the kinds of company that it can be asked in.

    `own`: whether it is ours, which has to keep bits. `alone(n)`: the trace of the first n rows,
    each asked by itself; `path(n)`: that of a branch's node after its ancestors, one by one.
    `together`: the trace of a company's compared rows.
    """

    name: str
    own: bool
    kinds: tuple[str, ...]
    alone: Callable[[int], Trace]
    together: Callable[[Company], Trace]
    path: Callable[[int], Trace] | None = None


@dataclass(frozen=True)
class Finding:
    """The outcome for the rows of one company.

    `difference`: None where all bits are the same. `choices`: of how many rows the likeliest token
    changed, None where there are no logits.
    """

    subject: str
    own: bool
    company: Company
    difference: Difference | None
    choices: int | None

    @property
    def same(self) -> bool:
        return self.difference is None


@torch.inference_mode()
def probe(subjects: Iterable[Subject], sizes: Sequence[int] = SIZES) -> Iterator[Finding]:
    """Yield a finding for each subject, kind of company and size."""
    for subject in subjects:
        longest = max(sizes) if set(subject.kinds) & set(WHOLE) else 1
        first = subject.alone(longest)
        for kind in subject.kinds:
            for size in sizes:
                company = Company(kind, size)
                together = subject.together(company)
                alone = subject.path(size) if kind == BRANCH and subject.path else first
                yield Finding(
                    subject.name,
                    subject.own,
                    company,
                    first_difference(alone, together),
                    changed_choices(alone, together),
                )


def kept(findings: Iterable[Finding]) -> bool:
    """Return whether everything of ours kept its bits."""
    return all(finding.same for finding in findings if finding.own)
