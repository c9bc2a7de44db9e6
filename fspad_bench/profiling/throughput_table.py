"""A measurement of throughput as a table, and as JSON."""

from __future__ import annotations

import math
from typing import Any

from fspad_bench.benchmark.record import VANILLA
from fspad_bench.benchmark.speeds import FEWEST_PROMPTS
from fspad_bench.benchmark.stats import Interval
from fspad_bench.profiling.break_even import last_useful
from fspad_bench.profiling.company import LOSSY
from fspad_bench.profiling.throughput import Cell, Throughput
from fspad_bench.util import machine
from fspad_bench.util.grid import grid

HEADER = [
    "batch",
    "decoder",
    "tokens/s",
    "tokens/step",
    "nodes",
    "speedup (95%)",
    "as alone",
    "verdict",
]


def render(measured: Throughput, *, is_markdown: bool = False) -> str:
    """Return the table, each decoder's break-even, and what the figures are worth."""
    lines = [_line(measured, cell) for cell in measured.cells]
    table = grid(lines, HEADER, is_markdown=is_markdown, sides=["right", "left"], side="right")
    return "\n".join([table, "", *sentences(measured), *notes(measured)])


def _line(measured: Throughput, cell: Cell) -> list[str]:
    same = cell.requests - cell.differing
    return [
        str(cell.batch),
        cell.decoder,
        f"{cell.rate:.1f}",
        f"{cell.tokens_per_step.value:.2f}",
        f"{cell.nodes_per_step:.1f}",
        "1.00" if cell.decoder == VANILLA else _interval(measured.speedup(cell)),
        f"{same} of {cell.requests}",
        cell.verdict,
    ]


def sentences(measured: Throughput) -> list[str]:
    """Return one sentence a decoder: from which batch size on it should be switched off."""
    names = dict.fromkeys(cell.decoder for cell in measured.cells if cell.decoder != VANILLA)
    return [_sentence(name, measured) for name in names]


def _sentence(name: str, measured: Throughput) -> str:
    sizes = sorted(measured.drafting(name))
    unsought = _unsought(name, measured)
    if not sizes:
        return f"{name}: no break-even{unsought}"
    size = measured.break_even(name)
    largest = sizes[-1]
    useful = last_useful(size.value, largest)
    bounds = ""
    if size.low < size.high:  # not nan, which a single prompt has
        bounds = f" [{_size(size.low, largest)}, {_size(size.high, largest)}]"
    if size.value == sizes[0]:
        return (
            f"{name}: slower than vanilla from batch {sizes[0]} on{bounds}{unsought}: switch it off"
        )
    slower = _slower_below(name, measured, size.value)
    if useful is None:
        return f"{name}: break-even not reached{bounds} up to batch {largest}{slower}{unsought}"
    return (
        f"{name}: break-even at batch {size.value:.1f}{bounds}{slower}{unsought}: "
        f"switch it off from {useful + 1} on, --speculate-up-to {useful}"
    )


def _unsought(name: str, measured: Throughput) -> str:
    """Return in words above which batch size nothing was drafted, so that no break-even is there
    to find; empty where all sizes measured drafted.
    """
    is_whole = measured.drafting(name).keys() == measured.of(name).keys()
    return "" if is_whole else f", not looked for above {measured.speculate_up_to}"


def _slower_below(name: str, measured: Throughput, size: float) -> str:
    """Return in words at which smaller batch sizes it is slower than vanilla all the same."""
    slower = [
        str(batch)
        for batch, cell in sorted(measured.drafting(name).items())
        if batch < size and measured.speedup(cell).value < 1
    ]
    return f", but slower than vanilla at {', '.join(slower)}" if slower else ""


def notes(measured: Throughput) -> list[str]:
    """Return what a reader has to know of these figures."""
    found = []
    verdicts = {cell.verdict for cell in measured.cells}
    if LOSSY in verdicts:
        found.append("lossy: requests got tokens that they do not get at batch 1")
    if "tie" in verdicts:
        found.append("tie: this engine rounds a row one way alone and another way among others")
    if "unverified" in verdicts:
        found.append("unverified: requests differ from batch 1, and nothing here can tell why")
    if measured.prompts < FEWEST_PROMPTS:
        found.append(f"fewer than {FEWEST_PROMPTS} prompts have no interval: give a larger --limit")
    if measured.too_large is not None:
        found.append(f"a batch of {measured.too_large} does not fit the memory: left out")
    if measured.others > machine.NOISY:
        found.append(
            f"other work used {measured.others:.1f} cores meanwhile: these times are noisy"
        )
    return found


def facts(measured: Throughput) -> dict[str, Any]:
    """Return the measurement as JSON can hold it: an end of an interval that is unknown is None,
    and so is a break-even that was not reached, or not looked for.
    """
    return {
        "prompts": measured.prompts,
        "rows": "same bits in any company" if measured.keeps_bits else "same up to rounding",
        "other_work_cores": measured.others,
        "does_not_fit": measured.too_large,
        "cells": [_cell_facts(measured, cell) for cell in measured.cells],
        "break_even": {
            name: _numbers(measured.break_even(name))
            for name in dict.fromkeys(cell.decoder for cell in measured.cells)
            if name != VANILLA
        },
    }


def _cell_facts(measured: Throughput, cell: Cell) -> dict[str, Any]:
    return {
        "decoder": cell.decoder,
        "batch": cell.batch,
        "tokens_per_second": cell.rate,
        "tokens_per_step": _numbers(cell.tokens_per_step),
        "nodes_per_step": cell.nodes_per_step,
        "speedup": _numbers(measured.speedup(cell)),
        "requests": cell.requests,
        "differing": cell.differing,
        "verdict": cell.verdict,
        "seconds": cell.seconds,
        "tokens": cell.tokens,
        "steps": cell.steps,
    }


def _numbers(interval: Interval) -> list[float | None]:
    return [number if math.isfinite(number) else None for number in interval]


def _interval(speedup: Interval) -> str:
    if math.isnan(speedup.low):
        return f"{speedup.value:.2f} [±?]"
    return f"{speedup.value:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"


def _size(size: float, largest: int) -> str:
    return f"above {largest}" if math.isinf(size) else f"{size:.1f}"
