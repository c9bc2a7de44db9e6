"""Records to rows, and rows to text, Markdown, CSV or JSON. A pure function of the record's lines.

A row belongs to one run key. Its names in JSON are a contract: they are added to, never renamed; what cannot be known
is null.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from fspad_bench.benchmark.record import METHOD, UNKNOWN, Audit, Key, Records, Sample
from fspad_bench.benchmark.stats import (
    Cost,
    Interval,
    agreement,
    ratio_interval,
    ratio_of_mean_speeds,
    speedup,
)
from fspad_bench.benchmark.verdict import ENOUGH_PROMPTS, differing_prompts, verdict
from fspad_bench.decoders.registry import Label
from fspad_bench.util.machine import NOISY

VANILLA = "vanilla"
FEWEST_PROMPTS = 5  # for an interval
IDENTITY = (
    "target", "task", "decoder", "options", "temperature", "top_p", "top_k", "seed", "max_new_tokens", "dtype",
    "forward", "device", "threads", "machine", "reset", "data_source", "data_sha256", "target_identity", "version",
    "verification",
)  # fmt: skip

FEW = f"fewer than {ENOUGH_PROMPTS} prompts differ, so a rule that takes any near-top token could hide: run more"
APART = (
    "data_source",
    "data_sha256",
    "max_new_tokens",
    "seed",
    "version",
    "forward",
)  # of a task measured twice


class Pair(NamedTuple):
    """A decoder's generation and vanilla's of the same prompt, noise and round."""

    vanilla: Sample
    made: Sample


def rows(records: Records) -> list[dict[str, Any]]:
    """One row a run key, vanilla first in its setting, in the order of the record."""
    by_key = {name: [] for name in records.keys}
    for sample in records.samples:
        by_key[sample.key].append(sample)
    settings = {}
    for name, key in records.keys.items():
        settings.setdefault(key.setting, []).append(name)
    return [
        _row(records, name, _vanilla(records, names), by_key)
        for names in settings.values()
        for name in names
    ]


def latest(samples: Iterable[Sample]) -> list[Sample]:
    """The last of each prompt and turn: a round that was resumed or repeated runs vanilla again."""
    return list({(s.sample, s.turn): s for s in samples}.values())


def _vanilla(records: Records, names: Sequence[str]) -> str | None:
    return next((name for name in names if records.keys[name].decoder == VANILLA), None)


def _row(
    records: Records, name: str, vanilla: str | None, by_key: dict[str, list[Sample]]
) -> dict[str, Any]:
    key = records.keys[name]
    all_made = latest(by_key[name])
    made = [s for s in all_made if not s.error]
    partners = {(s.round, s.sample, s.turn): s for s in by_key.get(vanilla, ()) if not s.error}
    pairs = [Pair(partners[at], s) for s in made if (at := (s.round, s.sample, s.turn)) in partners]
    differing = [p for p in pairs if p.vanilla.tokens != p.made.tokens]
    tokens = sum(len(s.tokens) for s in made)
    asked = {(p.made.round, p.made.sample, p.made.turn) for p in differing}
    audits = [a for a in records.audits if a.key == name and (a.round, a.sample, a.turn) in asked]
    alike = {n for n, k in records.keys.items() if _rounding(k) == _rounding(key)}
    pooled = [a for a in records.audits if a.key in alike]
    decode = _speedup(pairs, prefill=False)
    whole = _speedup(pairs, prefill=True)
    scores = records.scores.get(name, {})
    steps = _steps(made)
    seconds = sum(s.decode_seconds for s in made)
    return {
        **{name: getattr(key, name) for name in IDENTITY},
        "samples": len({s.sample for s in made}),
        "tokens": tokens,
        "verdict": _verdict(key, pairs, len(differing), tokens, audits, pooled),
        "divergences": len(differing) if pairs else None,
        "same_tokens": _same(pairs),
        "speedup": _known(decode.value),
        "speedup_low": _known(decode.low),
        "speedup_high": _known(decode.high),
        "speedup_end_to_end": _known(whole.value),
        "speedup_spec_bench": _spec_bench(pairs),
        "tokens_per_step": _known(steps.value),
        "tokens_per_step_low": _known(steps.low),
        "tokens_per_step_high": _known(steps.high),
        "tokens_per_second": tokens / seconds if seconds else None,
        "time_to_first_token": sum(s.prefill_seconds for s in made) / len(made)
        if seconds
        else None,
        "draft_share": sum(s.draft_seconds for s in made) / seconds if seconds else None,
        "score_share": sum(s.score_seconds for s in made) / seconds if seconds else None,
        "accepted": _histogram(made),
        "peak_memory": max((s.peak_memory for s in made if s.peak_memory), default=None),
        "metric": next(iter(scores), None),
        "score": next(iter(scores.values()), None),
        "scores": scores,
        "noisy": _noisy(made) or _noisy([pair.vanilla for pair in pairs]),
        "errors": len(all_made) - len(made),
        "max_regret": max((max(a.decoder_regrets) for a in audits), default=None),
        "margin_error": max((a.margin_error for a in audits), default=None),
        "differing_prompts": differing_prompts(pooled),
    }


def _rounding(key: Key) -> tuple[Any, ...]:
    """What decides how a decoder's forwards round: keys alike in it say together how far rounding reaches."""
    where = (
        key.target_identity,
        key.dtype,
        key.forward,
        key.device,
        key.threads,
        key.machine,
        key.version,
    )
    return key.decoder, json.dumps(key.options, sort_keys=True, default=str), *where


def _verdict(
    key: Key,
    pairs: Sequence[Pair],
    differing: int,
    tokens: int,
    audits: Sequence[Audit],
    pooled: Sequence[Audit],
) -> str:
    if differing and not key.identical:
        return "unverified" if key.verification in UNKNOWN else "law"
    return verdict(differing, tokens, audits, pooled, key.dtype) if pairs else "unverified"


def _speedup(pairs: Sequence[Pair], *, prefill: bool) -> Interval:
    """Vanilla's seconds a token over the decoder's, with its interval; a prompt's turns stay together."""
    prompts: dict[str, list[Pair]] = {}
    for pair in pairs:
        prompts.setdefault(pair.made.sample, []).append(pair)
    sides = [
        [_cost([pair[side] for pair in found], prefill) for found in prompts.values()]
        for side in (0, 1)
    ]
    if not prompts or not all(
        cost.seconds for side in sides for cost in side
    ):  # a foreign engine's decode time
        return Interval(math.nan, math.nan, math.nan)
    return _of_enough(speedup(*sides), len(prompts))


def _steps(made: Sequence[Sample]) -> Interval:
    """Tokens a full forward of the target, with its interval over prompts; a prompt's turns stay together."""
    prompts: dict[str, list[int]] = {}
    for sample in made:
        tokens, forwards = prompts.setdefault(sample.sample, [0, 0])
        prompts[sample.sample] = [tokens + sum(sample.committed), forwards + sample.forwards]
    drafted = [(tokens, forwards) for tokens, forwards in prompts.values() if forwards]
    return (
        _of_enough(ratio_interval(drafted), len(drafted))
        if drafted
        else Interval(math.nan, math.nan, math.nan)
    )


def _of_enough(found: Interval, prompts: int) -> Interval:
    """A bootstrap of fewer prompts has nothing to draw from: its interval would be far too narrow."""
    return found if prompts >= FEWEST_PROMPTS else Interval(found.value, math.nan, math.nan)


def _cost(samples: Sequence[Sample], prefill: bool) -> Cost:
    seconds = sum(s.decode_seconds + prefill * s.prefill_seconds for s in samples)
    return Cost(seconds, sum(len(s.tokens) for s in samples))


def _spec_bench(pairs: Sequence[Pair]) -> float | None:
    """Spec-Bench's figure, prefill included: the ratio of mean tokens a second."""
    sides = [[_cost([pair[side]], True) for pair in pairs] for side in (0, 1)]
    return ratio_of_mean_speeds(*sides) if pairs else None


def _same(pairs: Sequence[Pair]) -> float | None:
    """The share of vanilla's tokens that come before the first difference."""
    total = sum(len(p.vanilla.tokens) for p in pairs)
    return sum(agreement(p.vanilla.tokens, p.made.tokens) for p in pairs) / total if total else None


def _histogram(made: Sequence[Sample]) -> list[int]:
    """How many steps committed 1, 2, 3, ... tokens."""
    steps = [n for s in made for n in s.committed]
    return [steps.count(n) for n in range(1, max(steps, default=0) + 1)]


def _noisy(made: Sequence[Sample]) -> bool:
    wall = sum(s.prefill_seconds + s.decode_seconds for s in made)
    other = sum(s.other_load * (s.prefill_seconds + s.decode_seconds) for s in made)
    return bool(wall) and other / wall > NOISY


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def failed(found: Sequence[dict[str, Any]]) -> bool:
    """Whether a run is to end with exit code 1."""
    return any(row["verdict"] == "lossy" or row["errors"] for row in found)


def render(found: list[dict[str, Any]], style: str) -> str:
    """`text`, `markdown`, `csv` or `json`."""
    if style == "json":
        return json.dumps({"rows": found}, indent=2, ensure_ascii=False)
    if style == "csv":
        return _csv(found)
    names = _names(found)
    tables = [_table(list(group), names, style) for _, group in groupby(found, key=_setting)]
    return "\n\n".join([*tables, *_means(found, names, style), _notes(found, names)])


def _names(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    """By method, what a decoder is called: where one name has several settings, with the options that differ."""
    every: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found:
        every.setdefault(Label.of(row["decoder"]).shown, {})[_method(row)] = row["options"]
    names = {}
    for name, settings in every.items():
        options = {option for chosen in settings.values() for option in chosen}
        differ = sorted(
            o for o in options if len({str(chosen.get(o)) for chosen in settings.values()}) > 1
        )
        for method, chosen in settings.items():
            told = ", ".join(
                f"{o.removesuffix('_sha256')}={_short(chosen[o])}" for o in differ if o in chosen
            )
            names[method] = f"{name} ({told})" if told else name
    return names


def _method(row: dict[str, Any]) -> str:
    return json.dumps([row["decoder"], row["options"]], sort_keys=True, default=str)


def _short(value: object) -> str:
    text = str(value)
    return text[:8] if len(text) == 64 else text  # a file's hash


def _csv(found: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(found[0]) if found else [], lineterminator="\n")
    writer.writeheader()
    for row in found:
        writer.writerow(
            {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()}
        )
    return out.getvalue().rstrip("\n")


def _task(row: dict[str, Any]) -> str:
    return f"{row['task']}@{row['data_source']}" if row["data_source"] != "hub" else row["task"]


def _law(row: dict[str, Any]) -> str:
    cuts = [
        f"{name.replace('_', '-')} {row[name]:g}"
        for name, off in (("top_k", 0), ("top_p", 1.0))
        if row[name] != off
    ]
    return " ".join([f"T={row['temperature']:g}", *cuts]) if row["temperature"] else "greedy"


def _setting(row: dict[str, Any]) -> str:
    return json.dumps([v for k, v in row.items() if k in IDENTITY and k not in METHOD])


def _title(row: dict[str, Any]) -> str:
    place = f"{row['dtype']} · {row['device']}, {row['threads']} threads"
    return " · ".join(
        [
            _task(row),
            row["target"],
            place,
            f"{row['samples']} prompts",
            f"{row['max_new_tokens']} tokens",
            _law(row),
        ]
    )


def _table(group: list[dict[str, Any]], names: dict[str, str], style: str) -> str:
    from tabulate import tabulate

    title = _title(group[0])
    header = [
        "decoder",
        "verdict",
        "tokens/step",
        "speedup (95%)",
        "tokens/s",
        "first token",
        group[0]["metric"] or "score",
    ]
    body = [[_named(r, group[0], names), r["verdict"], *_figures(r), _score(r)] for r in group]
    look = "pipe" if style == "markdown" else "simple"
    sides = ["left", "left", "right", "left", "right", "right", "right"]
    text = tabulate(body, header, tablefmt=look, colalign=sides, disable_numparse=True)
    return f"**{title}**\n\n{text}" if style == "markdown" else f"{title}\n\n{text}"


def _named(row: dict[str, Any], first: dict[str, Any], names: dict[str, str]) -> str:
    """A decoder's name, with its own number of prompts where that is not the title's."""
    name = names[_method(row)]
    count = row["samples"]
    return name if count == first["samples"] else f"{name} ({count} prompts)"


def _figures(row: dict[str, Any]) -> list[str]:
    mark = "~" if row["noisy"] else ""
    return [
        _number(row["tokens_per_step"], ".2f"),
        mark + _number(row["speedup"], ".2f") + _interval(row),
        mark + _number(row["tokens_per_second"], ".1f"),
        _number(row["time_to_first_token"] and 1000 * row["time_to_first_token"], ".0f", " ms"),
    ]


def _interval(row: dict[str, Any]) -> str:
    if row["decoder"] == VANILLA:
        return ""
    return "  " + (
        "[±?]"
        if row["speedup_low"] is None
        else f"[{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]"
    )


def _score(row: dict[str, Any]) -> str:
    return _number(row["score"], ".1f", "%" if row["metric"] in ("accuracy", "em") else "")


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _means(found: list[dict[str, Any]], names: dict[str, str], style: str) -> list[str]:
    """Each decoder over all tasks of a law: the mean of its tokens a step and of its speedups, a task one vote.

    A table for each place where tasks were measured; the same task measured twice there, of other data or to another
    length, counts in means of its own.
    """
    from tabulate import tabulate

    places: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        places.setdefault(_place(row), []).append(row)
    look = "pipe" if style == "markdown" else "simple"
    tables = []
    for place, rows_there in places.items():
        body = [[_law(group[0]), names[_method(group[0])], len(group),
                 *(_mean(group, name) for name in ("tokens_per_step", "speedup"))]
                for group in _over_tasks(rows_there) if len(group) > 1]  # fmt: skip
        heads = ["law", "decoder", "tasks", "tokens/step", "speedup"]
        if body:
            title = f"mean of the tasks · {place}" if len(places) > 1 else "mean of the tasks"
            tables.append(
                f"{title}\n\n{tabulate(body, heads, tablefmt=look, disable_numparse=True)}"
            )
    return tables


def _over_tasks(found: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of one law and method, every task once."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in found:
        groups.setdefault((_law(row), _method(row)), []).append(row)
    parts: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for name, group in groups.items():
        twice = len({row["task"] for row in group}) < len(group)
        for row in group:
            apart = [row[k] for k in APART] if twice else []
            parts.setdefault((*name, *apart), []).append(row)
    return list(parts.values())


def _place(row: dict[str, Any]) -> str:
    return f"{row['target']} · {row['dtype']} · {row['device']}, {row['threads']} threads · {row['machine']}"


def _mean(group: list[dict[str, Any]], name: str) -> str:
    """Of all tasks or of none: what is left out would flatter."""
    values = [row[name] for row in group]
    return _number(None if None in values else sum(values) / len(values), ".2f")


def _notes(found: list[dict[str, Any]], names: dict[str, str]) -> str:
    """What a reader must know to read the table."""
    others = [row for row in found if row["decoder"] != VANILLA]
    same = sum(row["verdict"] == "exact" for row in others)
    notes = [f"{same} of {len(others)} rows identical to vanilla, token for token" if others else "",
             "speedup: vanilla's decode seconds a token over the decoder's, paired by prompt",
             "tokens/step counts the bonus token"]  # fmt: skip
    if any(row["noisy"] for row in found):
        notes.append(
            f"~ other work took more than {NOISY:.0%} of a core meanwhile: do not quote these speeds"
        )
    notes += [
        _explain(row, names) for row in others if row["divergences"] and row["verdict"] != "law"
    ]
    for decoder, rule in sorted(
        {(names[_method(r)], r["verification"]) for r in others if r["verdict"] == "law"}
    ):
        notes.append(
            f"{decoder}: its tokens are not vanilla's but keep its law by {rule}; `certify` tests that"
        )
    if errors := sum(row["errors"] for row in found):
        notes.append(
            f"{errors} generations failed; their errors stand in the record, their pairs are left out"
        )
    return "\n".join(note for note in notes if note)


def _explain(row: dict[str, Any], names: dict[str, str]) -> str:
    name = names[_method(row)]
    count = row["divergences"]
    what = f"{name} on {_task(row)}, {_law(row)}: {count} outputs differ ({row['verdict']})"
    if row["verification"] in UNKNOWN and row["temperature"]:
        return f"{what}; it verifies by a rule of its own, whose law `certify` tests"
    if row["max_regret"] is None:
        return f"{what}; they could not be re-scored"
    found = f"largest regret {row['max_regret']:.2g}, vanilla's own margin error {row['margin_error']:.2g} (logits)"
    few = row["verdict"] == "tie" and row["differing_prompts"] < ENOUGH_PROMPTS
    return f"{what}; {found}" + (f"; {FEW}" if few else "")
