"""What a reader must know to read a table, a line a fact."""

from __future__ import annotations

from itertools import groupby, permutations

from fspad_bench.benchmark import distrust
from fspad_bench.benchmark.looping import LONGEST_PERIOD, TAIL
from fspad_bench.benchmark.noise_notes import noise_notes
from fspad_bench.benchmark.record import UNKNOWN_RULES, VANILLA
from fspad_bench.benchmark.rows import Row
from fspad_bench.benchmark.titles import (
    Names,
    method,
    place_of,
    setting,
)
from fspad_bench.benchmark.verdict import ENOUGH_PROMPTS
from fspad_bench.util.machine import NOISY


def notes_of(table: list[Row], names: Names) -> list[str]:
    """Return what a reader must know to read the tables, a line a fact."""
    others = [row for row in table if row["decoder"] != VANILLA]
    same = sum(row["verdict"] == "exact" for row in others)
    notes = (
        [f"{same} of {len(others)} rows identical to vanilla, token for token"] if others else []
    )
    notes += [
        "speedup: vanilla's decode seconds per token over the decoder's, paired by prompt",
        "end to end: the same with the prefill",
        "tokens/step counts the bonus token",
    ]
    notes += noise_notes(table, names)
    if any(row["looping"] for row in table):
        notes.append(
            f"no loops: without outputs whose last {TAIL} or more tokens repeat, with a period of "
            f"at most {LONGEST_PERIOD}"
        )
        notes += _order_notes(table, names)
    if any(row["noisy"] for row in table):
        notes.append(
            f"~ other work used more than {NOISY:.0%} of a core meanwhile: "
            "do not quote these speeds"
        )
    notes += [
        _explanation(row, names) for row in others if row["divergences"] and row["verdict"] != "law"
    ]
    notes += _distribution_notes(others, names)
    notes += _guard_notes(table, names)
    notes += _scope_notes(others, names)
    runs = max((row["runs"] for row in table), default=1)
    if runs > 1:
        notes.append(
            f"{runs} runs are read as one: tokens/s and first token are of different hours, "
            "speedups pair outputs of one run; of a prompt that several measured the last counts"
        )
    errors = sum(row["errors"] for row in table)
    if errors:
        notes.append(
            f"{errors} generations failed; the record holds their errors, "
            "and their pairs are left out"
        )
    if any(row["source_sha256"] is None for row in table):
        notes.append(
            "records of schema 1: options are as given, not as resolved, "
            "and the source is not recorded"
        )
    return notes


def _order_notes(table: list[Row], names: Names) -> list[str]:
    """Return where one decoder is faster than another only with the outputs that loop."""
    notes = []
    for _, group in groupby(table, key=setting):
        rows = [row for row in group if row["speedup"] and row["speedup_without_loops"]]
        for faster, slower in permutations(rows, 2):
            gains = faster["speedup"] > slower["speedup"]
            loses = faster["speedup_without_loops"] < slower["speedup_without_loops"]
            if gains and loses:
                notes.append(
                    f"{place_of(faster, names)}: faster than {names[method(slower)]} only by the "
                    "outputs that loop"
                )
    return notes


def _distribution_notes(others: list[Row], names: Names) -> list[str]:
    return [
        f"{place_of(row, names)}: its tokens are not vanilla's, but {row['verification']} keeps "
        f"vanilla's distribution; {distrust.evidence(row)}"
        for row in others
        if row["verdict"] == "law"
    ]


def _guard_notes(table: list[Row], names: Names) -> list[str]:
    return [f"{place_of(row, names)}: {text}" for row in table for text in distrust.notes(row)]


def _scope_notes(others: list[Row], names: Names) -> list[str]:
    learning = {names[method(row)] for row in others if row["scope"] == "run"}
    return [
        f"{decoder}: it learns across prompts, so its figures depend on their number and order"
        for decoder in sorted(learning)
    ]


def _explanation(row: Row, names: Names) -> str:
    """Return what is known about outputs that differ from vanilla's."""
    where = place_of(row, names)
    text = f"{where}: {row['divergences']} outputs differ ({row['verdict']})"
    if row["pit_p"] is not None:
        return f"{text}; {distrust.evidence(row)}"
    if row["verification"] in UNKNOWN_RULES and row["temperature"] != 0:
        return f"{text}; it verifies by a rule of its own, whose distribution `certify` tests"
    if row["max_regret"] is None:
        return f"{text}; they could not be re-scored"
    text += f"; largest regret {row['max_regret']:.2g}"
    text += f", vanilla's own margin error {row['margin_error']:.2g} (logits)"
    if row["verdict"] == "tie" and row["differing_prompts"] < ENOUGH_PROMPTS:
        text += f"; fewer than {ENOUGH_PROMPTS} prompts differ,"
        text += " so a rule that takes any near-top token could hide: run more"
    return text
