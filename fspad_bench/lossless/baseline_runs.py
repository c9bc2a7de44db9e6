"""Run what expectations describe, those of one setting together.

- Decoders that answer the same prompts share the target and vanilla's answers: a run a setting,
  not a run an expectation.
- Where a run is refused, its expectations are halved until the one at fault is alone: the others
  are still checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from fspad_bench.benchmark.plan import Plan
from fspad_bench.benchmark.record import VANILLA, Records
from fspad_bench.benchmark.recorded_costs import is_sized
from fspad_bench.benchmark.rows import Row, rows
from fspad_bench.decoders.label import Label
from fspad_bench.lossless.promises import Expectation
from fspad_bench.util.errors import BenchError


@dataclass(frozen=True)
class Outcome:
    """The outcome of an expectation: its row, its steps and its seconds, or why there is none.

    `steps` holds the committed tokens of each step, an output a list. `is_free`: trees are sized by
    the machine or learn across prompts, so that other steps on the same text prove no change.
    """

    expectation: Expectation
    row: dict[str, Any] = field(default_factory=dict)
    steps: list[list[int]] = field(default_factory=list)
    is_free: bool = False
    seconds: float = 0.0
    refused: str = ""


def outcomes(expectations: Sequence[Expectation]) -> Iterator[Outcome]:
    """Yield what came of each expectation, those of one setting together."""
    for group in grouped(expectations):
        yield from group_outcomes(group)


def grouped(expectations: Sequence[Expectation]) -> list[list[Expectation]]:
    """Return expectations by what they ask, in the order of the first of each group."""
    groups: dict[tuple[Any, ...], list[Expectation]] = {}
    for entry in expectations:
        groups.setdefault(entry.setting, []).append(entry)
    return list(groups.values())


def group_outcomes(group: Sequence[Expectation]) -> list[Outcome]:
    """Return what came of the expectations of one setting.

    Where one of several spoils their run, each half of them is run by itself.
    """
    try:
        together = _measured(group)
    except BenchError as error:
        if len(group) == 1:
            figure = f"{error.message}; {error.hint}" if error.hint else error.message
            return [Outcome(group[0], refused=figure)]
        return _in_halves(group)
    return _in_halves(group) if len(group) > 1 and any(map(_is_retargeted, together)) else together


def _in_halves(group: Sequence[Expectation]) -> list[Outcome]:
    half = len(group) // 2
    return group_outcomes(group[:half]) + group_outcomes(group[half:])


def _is_retargeted(outcome: Outcome) -> bool:
    """Whether a decoder changed the target, which is held against every row of its run."""
    return any(finding["guard"] == "target" for finding in outcome.row["findings"])


def _measured(group: Sequence[Expectation]) -> list[Outcome]:
    """Run the expectations of one setting in one run."""
    from fspad_bench.benchmark.runner import Runner

    began = perf_counter()
    labels = _labels(group)
    with TemporaryDirectory() as folder:
        records = Records.read(Runner(_plan(group, labels), Path(folder), timed=False).run())
        table = {row["decoder"]: row for row in rows(records)}
    measured = [
        _outcome(entry, records, table[label]) for entry, label in zip(group, labels, strict=True)
    ]
    shared = (perf_counter() - began - sum(outcome.seconds for outcome in measured)) / len(group)
    return [replace(outcome, seconds=outcome.seconds + shared) for outcome in measured]


def _labels(group: Sequence[Expectation]) -> list[str]:
    """Return a label for each expectation; several of one run have names of their own."""
    if len(group) == 1:
        return [group[0].decoder]
    return [f"{entry.decoder}#{number}={entry.decoder}" for number, entry in enumerate(group)]


def _plan(group: Sequence[Expectation], labels: Sequence[str]) -> Plan:
    first = group[0]
    options = {
        Label.of(label).option_prefixes[-1]: {n: str(value) for n, value in entry.options.items()}
        for entry, label in zip(group, labels, strict=True)
    }
    return Plan(
        decoders=list(dict.fromkeys([VANILLA, *labels])),
        tasks=[first.task],
        target=first.target,
        options=options,
        data="bundled",
        limit=first.limit,
        temperatures=[first.temperature],
        max_new_tokens=first.max_new_tokens,
        device="cpu",
        aa=False,  # an expectation is never of time
    )


def _outcome(expectation: Expectation, records: Records, row: Row) -> Outcome:
    keys = {name for name, key in records.keys.items() if key.decoder == row["decoder"]}
    own = [sample for sample in records.samples if sample.key in keys]
    error = next((sample.error for sample in own if sample.error), "")
    key = records.keys[row["record_key"]]
    return Outcome(
        expectation,
        {**row, "error": error},
        [sample.committed for sample in own],
        is_free=is_sized(records, key) or row["scope"] == "run",
        seconds=sum(sample.prefill_seconds + sample.decode_seconds for sample in own),
    )
