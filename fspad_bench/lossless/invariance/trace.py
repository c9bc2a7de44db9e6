"""What each operation of a forward gave some rows, and where two such traces part.

Bits are compared, not values: -0.0 is not 0.0, and a NaN is the same NaN or another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LOGITS = "logits"
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Operation(NamedTuple):
    """An operation of a forward; `layer` is None outside of the decoder layers."""

    name: str
    layer: int | None = None


Trace = dict[Operation, Tensor]
"""Outputs of R rows by operation, `[R, ...]` each, in the order of execution."""


class Difference(NamedTuple):
    """The first operation that gave a row other bits.

    `row`: the first such row. `ulps`, `gap`: the largest difference of its rows, in units in the
    last place and in value; infinite where one of two values is not a number.
    """

    operation: Operation
    row: int
    ulps: float
    gap: float


def bits(values: Tensor) -> Tensor:
    """Return values as integers of the same bits, `[R, width]`."""
    rows = values.reshape(len(values), -1).contiguous()
    return rows.view(INTEGERS[rows.element_size()])


def stacked(traces: list[Trace]) -> Trace:
    """Return the rows of several traces of the same operations, one behind the other."""
    return {op: torch.cat([trace[op] for trace in traces]) for op in traces[0]}


def first_difference(alone: Trace, together: Trace) -> Difference | None:
    """Return where the rows of `together` first differ from the same rows alone.

    `alone` may hold more rows. An operation that only one of them has is passed over: a forward may
    leave one out for a single row.
    """
    for operation, rows in together.items():
        if operation not in alone:
            continue
        expected = alone[operation][: len(rows)]
        other = (bits(expected) != bits(rows)).any(-1)
        if other.any():
            row = int(other.int().argmax())
            return Difference(operation, row, largest_ulps(expected, rows), gap(expected, rows))
    return None


def gap(expected: Tensor, rows: Tensor) -> float:
    """Return the largest difference in value, infinite where one is not a number."""
    if bool((expected.isnan() != rows.isnan()).any()):
        return float("inf")
    same = expected == rows
    distance = (expected.double() - rows.double()).abs()
    return float(distance.masked_fill(same | expected.isnan(), 0.0).nan_to_num(torch.inf).max())


def largest_ulps(expected: Tensor, rows: Tensor) -> float:
    """Return the largest number of representable values between two, infinite with a NaN."""
    if bool((expected.isnan() | rows.isnan()).any()):
        return float("inf")
    if not expected.is_floating_point():
        return gap(expected, rows)
    return float((_order(expected) - _order(rows)).abs().max())


def _order(values: Tensor) -> Tensor:
    """Number the representable values in their order; both zeros are 0."""
    integers = bits(values).long()
    sign = -(1 << (8 * values.element_size() - 1))  # the bits of -0.0 as an integer
    return torch.where(integers < 0, sign - integers, integers)


def changed_choices(alone: Trace, together: Trace) -> int | None:
    """Return of how many rows the largest logit is another token's, None without logits."""
    found = [op for op in together if op.name == LOGITS and op in alone]
    if not found:
        return None
    logits = together[found[-1]]
    expected = alone[found[-1]][: len(logits)]
    return int((expected.argmax(-1) != logits.argmax(-1)).sum())
