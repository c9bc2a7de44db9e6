"""Rows as text, Markdown, CSV or JSON.

- Text and Markdown hold a table a setting, then the means over tasks, then the notes needed to
  read them.
- CSV and JSON hold the rows alone, under the names of the contract (see `rows`).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from tabulate import tabulate

from fspad_bench.benchmark import distrust
from fspad_bench.benchmark.record import METHOD, UNKNOWN_RULES, VANILLA
from fspad_bench.benchmark.rows import IDENTITY, Row
from fspad_bench.benchmark.verdict import ENOUGH_PROMPTS
from fspad_bench.decoders.label import Label
from fspad_bench.util.machine import NOISY

PLACE = ("target", "dtype", "device", "threads", "machine")
SAMPLING = ("temperature", "top_p", "top_k")
# fields that tell apart two measurements of one task at one place
APART = tuple(n for n in IDENTITY if n not in (*METHOD, *PLACE, *SAMPLING, "task"))
FILE_HASH = 64  # characters of a sha256
PERCENT = ("accuracy", "em")  # metrics shown with a percent sign
HEADER = (
    "decoder",
    "verdict",
    "tokens/step",
    "speedup (95%)",
    "end to end",
    "tokens/s",
    "first token",
)
SIDES = ("left", "left", "right", "left", "right", "right", "right", "right")

Names = dict[str, str]


def render(table: list[Row], style: str) -> str:
    """Return the rows in a style: `text`, `markdown`, `csv` or `json`."""
    if style == "json":
        # plain ASCII, which every terminal and every pipe takes
        return json.dumps({"rows": finite(table)}, indent=2, allow_nan=False)
    if style == "csv":
        return _csv(table)
    names = _names(table)
    parts = [_table(list(group), names, style) for _, group in groupby(table, key=_setting)]
    parts += _means(table, names, style)
    parts.append("\n".join(_notes(table, names)))
    return "\n\n".join(parts)


def _csv(table: list[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]) if table else [], lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({name: _cell(value) for name, value in finite(row).items()})
    return out.getvalue().rstrip("\n")


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


def finite(value: Any) -> Any:
    """Return a value of JSON with None in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# names and titles


def _names(table: Sequence[Row]) -> Names:
    """Return the name of each method; settings of one decoder are told apart by the options that
    differ.
    """
    decoders: dict[str, dict[str, dict[str, Any]]] = {}
    for row in table:
        decoders.setdefault(Label.of(row["decoder"]).shown, {})[_method(row)] = row["options"]
    names = {}
    for name, settings in decoders.items():
        differing = _differing(list(settings.values()))
        for method, options in settings.items():
            shown = [_option(option, options) for option in differing if option in options]
            names[method] = f"{name} ({', '.join(shown)})" if shown else name
    return names


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the options whose values are not the same in all settings, sorted."""
    every = {option for options in settings for option in options}
    return sorted(
        option for option in every if len({str(options.get(option)) for options in settings}) > 1
    )


def _option(option: str, options: dict[str, Any]) -> str:
    text = str(options[option])
    value = text[:8] if len(text) == FILE_HASH else text
    return f"{option.removesuffix('_sha256')}={value}"


def _method(row: Row) -> str:
    return json.dumps([row["decoder"], row["options"]], sort_keys=True, default=str)


def _setting(row: Row) -> str:
    return json.dumps([row[name] for name in IDENTITY if name not in METHOD])


def _title(row: Row) -> str:
    parts = [
        _task(row),
        row["target"],
        f"{row['dtype']} · {row['device']}, {row['threads']} threads",
        f"{row['samples']} prompts",
        f"{row['max_new_tokens']} tokens",
        _distribution(row),
    ]
    return " · ".join(parts)


def _task(row: Row) -> str:
    if row["data_source"] == "hub":
        return row["task"]
    return f"{row['task']}@{row['data_source']}"


def _distribution(row: Row) -> str:
    """Return how tokens are chosen: `greedy`, or temperature and cuts."""
    if row["temperature"] == 0:
        return "greedy"
    parts = [f"T={row['temperature']:g}"]
    if row["top_k"] != 0:
        parts.append(f"top-k {row['top_k']:g}")
    if row["top_p"] != 1:
        parts.append(f"top-p {row['top_p']:g}")
    return " ".join(parts)


# the table of a setting


def _table(group: list[Row], names: Names, style: str) -> str:
    first = group[0]
    header = [*HEADER, first["metric"] or "score"]
    body = [
        [_name(row, first, names), row["verdict"], *_figures(row), _score(row)] for row in group
    ]
    grid = tabulate(body, header, tablefmt=_format(style), colalign=SIDES, disable_numparse=True)
    title = _title(first)
    return f"**{title}**\n\n{grid}" if style == "markdown" else f"{title}\n\n{grid}"


def _format(style: str) -> str:
    return "pipe" if style == "markdown" else "simple"


def _name(row: Row, first: Row, names: Names) -> str:
    """Return a decoder's name, with its number of prompts where that is not the title's."""
    name = names[_method(row)]
    count = row["samples"]
    return name if count == first["samples"] else f"{name} ({count} prompts)"


def _figures(row: Row) -> list[str]:
    seconds = row["time_to_first_token"]
    return [
        _number(row["tokens_per_step"], ".2f"),
        _marked(row, "speedup", ".2f") + _interval(row),
        _marked(row, "speedup_end_to_end", ".2f"),
        _marked(row, "tokens_per_second", ".1f"),
        _number(seconds and 1000 * seconds, ".0f", " ms"),
    ]


def _marked(row: Row, name: str, form: str) -> str:
    """Return a figure that depends on the clock, marked where other work was running."""
    mark = "~" if row["noisy"] and row[name] is not None else ""
    return mark + _number(row[name], form)


def _interval(row: Row) -> str:
    if row["decoder"] == VANILLA or row["speedup"] is None:
        return ""
    if row["speedup_low"] is None:
        return "  [±?]"
    return f"  [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]"


def _score(row: Row) -> str:
    return _number(row["score"], ".1f", "%" if row["metric"] in PERCENT else "")


def _number(value: float | None, form: str, unit: str = "") -> str:
    is_known = value is not None and math.isfinite(value)
    return f"{value:{form}}{unit}" if is_known else "-"


# means over tasks


def _means(table: list[Row], names: Names, style: str) -> list[str]:
    """Return a table of means for each place where several tasks were measured, each task weighing
    the same.

    A task measured twice at one place, with other data or to another length, counts in a mean of
    its own.
    """
    places: dict[str, list[Row]] = {}
    for row in table:
        places.setdefault(_place(row), []).append(row)
    header = ["sampling", "decoder", "tasks", "tokens/step", "speedup", "end to end"]
    tables = []
    for place, here in places.items():
        body = [_mean_line(group, names) for group in _over_tasks(here) if len(group) > 1]
        if body:
            title = f"mean of the tasks · {place}" if len(places) > 1 else "mean of the tasks"
            grid = tabulate(body, header, tablefmt=_format(style), disable_numparse=True)
            tables.append(f"{title}\n\n{grid}")
    return tables


def _mean_line(group: list[Row], names: Names) -> list[Any]:
    first = group[0]
    figures = ("tokens_per_step", "speedup", "speedup_end_to_end")
    means = [_mean(group, name) for name in figures]
    return [_distribution(first), names[_method(first)], len(group), *means]


def _over_tasks(table: Iterable[Row]) -> list[list[Row]]:
    """Group the rows of one distribution and method, so that each group holds a task once."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in table:
        groups.setdefault((_distribution(row), _method(row)), []).append(row)
    parts: dict[tuple[Any, ...], list[Row]] = {}
    for name, group in groups.items():
        repeated = len({row["task"] for row in group}) < len(group)
        for row in group:
            apart = [row[field] for field in APART] if repeated else []
            parts.setdefault((*name, *apart), []).append(row)
    return list(parts.values())


def _place(row: Row) -> str:
    device = f"{row['device']}, {row['threads']} threads"
    return f"{row['target']} · {row['dtype']} · {device} · {row['machine']}"


def _mean(group: list[Row], name: str) -> str:
    """Return the mean, or `-` unless every task has a value: a partial mean would be biased."""
    values = [row[name] for row in group]
    return _number(None if None in values else sum(values) / len(values), ".2f")


# notes


def _notes(table: list[Row], names: Names) -> list[str]:
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


def _distribution_notes(others: list[Row], names: Names) -> list[str]:
    return [
        f"{_place_of(row, names)}: its tokens are not vanilla's, but {row['verification']} keeps "
        f"vanilla's distribution; {distrust.evidence(row)}"
        for row in others
        if row["verdict"] == "law"
    ]


def _guard_notes(table: list[Row], names: Names) -> list[str]:
    return [f"{_place_of(row, names)}: {text}" for row in table for text in distrust.notes(row)]


def _scope_notes(others: list[Row], names: Names) -> list[str]:
    learning = {names[_method(row)] for row in others if row["scope"] == "run"}
    return [
        f"{decoder}: it learns across prompts, so its figures depend on their number and order"
        for decoder in sorted(learning)
    ]


def _place_of(row: Row, names: Names) -> str:
    return f"{names[_method(row)]} on {_task(row)}, {_distribution(row)}"


def _explanation(row: Row, names: Names) -> str:
    """Return what is known about outputs that differ from vanilla's."""
    where = _place_of(row, names)
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
