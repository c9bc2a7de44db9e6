"""How rows are called: the names of methods, the titles of tables, the places of notes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fspad_bench.benchmark.record import METHOD, PENALTIES
from fspad_bench.benchmark.rows import IDENTITY, Row
from fspad_bench.decoders.label import Label

FILE_HASH = 64  # characters of a sha256

Names = dict[str, str]


def names_of(table: Sequence[Row]) -> Names:
    """Return the name of each method; settings of one decoder are told apart by the options that
    differ.
    """
    decoders: dict[str, dict[str, dict[str, Any]]] = {}
    for row in table:
        decoders.setdefault(Label.of(row["decoder"]).shown, {})[method(row)] = row["options"]
    names = {}
    for name, settings in decoders.items():
        differing = _differing(list(settings.values()))
        for own_method, options in settings.items():
            shown = [_option(option, options) for option in differing if option in options]
            names[own_method] = f"{name} ({', '.join(shown)})" if shown else name
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


def method(row: Row) -> str:
    return json.dumps([row["decoder"], row["options"]], sort_keys=True, default=str)


def setting(row: Row) -> str:
    return json.dumps([row[name] for name in IDENTITY if name not in METHOD])


def title(row: Row) -> str:
    parts = [
        task_of(row),
        row["target"],
        f"{row['dtype']} · {device_of(row)}",
        f"{row['samples']} prompts",
        f"{row['max_new_tokens']} tokens",
        distribution(row),
    ]
    if row["looping"]:
        parts.append(f"{row['looping']} of {row['outputs']} outputs loop")
    if row["repeats"] > 1:
        parts.append(f"{row['repeats']} repeats")
    if row["aa"] is not None:
        parts.append(_noise(row))
    return " · ".join(parts)


def _noise(row: Row) -> str:
    """Return the noise floor and the A/A figure that it is of."""
    if row["noise_floor"] is None:
        return f"A/A {row['aa']:.3f} [±?]"
    interval = f"{row['aa']:.3f} [{row['aa_low']:.3f}, {row['aa_high']:.3f}]"
    return f"noise floor ±{row['noise_floor']:.1%} (A/A {interval})"


def device_of(row: Row) -> str:
    """Return the device and torch's threads: `cpu, 2 threads`."""
    count = row["threads"]
    return f"{row['device']}, {count} {'thread' if count == 1 else 'threads'}"


def task_of(row: Row) -> str:
    if row["data_source"] == "hub":
        return row["task"]
    return f"{row['task']}@{row['data_source']}"


def distribution(row: Row) -> str:
    """Return how tokens are chosen: `greedy`, or temperature and cuts; then the penalties."""
    parts = _temperature_and_cuts(row)
    for name, neutral in PENALTIES.items():
        if row[name] != neutral:
            parts.append(f"{name.replace('_', ' ')} {row[name]:g}")
    return " ".join(parts)


def _temperature_and_cuts(row: Row) -> list[str]:
    if row["temperature"] == 0:
        return ["greedy"]
    parts = [f"T={row['temperature']:g}"]
    if row["top_k"] != 0:
        parts.append(f"top-k {row['top_k']:g}")
    if row["top_p"] != 1:
        parts.append(f"top-p {row['top_p']:g}")
    if row["min_p"] != 0:
        parts.append(f"min-p {row['min_p']:g}")
    return parts


def place_of(row: Row, names: Names) -> str:
    return f"{names[method(row)]} on {task_of(row)}, {distribution(row)}"
