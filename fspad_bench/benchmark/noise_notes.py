"""What a table seems to say and its noise does not support, a line a fact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fspad_bench.benchmark.rows import Row
from fspad_bench.benchmark.speeds import FEWEST_PROMPTS
from fspad_bench.benchmark.titles import Names, distribution, method, place_of, task_of


def noise_notes(table: Sequence[Row], names: Names) -> Iterator[str]:
    """Yield what is not told from noise: speedups, then orders of decoders."""
    if any(row["noise_floor"] is not None for row in table):
        yield (
            "noise floor: how far from 1 the interval of vanilla's second turn on each prompt "
            "reaches, measured as a decoder (A/A)"
        )
    for where in dict.fromkeys(map(_indeterminate, table)):
        if where:
            yield where
    for row in table:
        if row["told_from_noise"] is False:
            yield f"{place_of(row, names)}: its speedup is not told from noise"
    ranked = [row for row in table if row["next_slower"]]
    for row in ranked:
        if row["speedup_over_next_low"] is not None and row["speedup_over_next_low"] <= 1:
            yield _order(row, names)
    if any(row["speedup_over_next_low"] is None for row in ranked):
        yield f"fewer than {FEWEST_PROMPTS} prompts tell no order of decoders in speed"
    if any(row["repeats"] > 1 for row in table):
        yield "CV: coefficient of variation between repeats, of tokens/s and of tokens/step"


def _indeterminate(row: Row) -> str:
    """Return a line where vanilla's second turn gave other tokens; else nothing."""
    if not row["aa_divergences"]:
        return ""
    where = f"{task_of(row)}, {distribution(row)}"
    return f"{where}: {row['aa_divergences']} outputs of vanilla differ when it is asked twice"


def _order(row: Row, names: Names) -> str:
    next_slower = names[method(row | row["next_slower"])]
    where = f"{task_of(row)}, {distribution(row)}"
    text = f"the order of {names[method(row)]} and {next_slower} on {where} is not told from noise"
    interval = f"[{row['speedup_over_next_low']:.2f}, {row['speedup_over_next_high']:.2f}]"
    text += f": {row['speedup_over_next']:.2f} {interval}"
    if row["prompts_to_tell"] is None:
        return text
    return f"{text}; about {row['prompts_to_tell']} prompts would tell"
