"""Records as evaluation results of the Hugging Face hub: `.eval_results/*.yaml` of a model's
repository.

- The format is that of huggingface/hub-docs, docs/hub/eval-results.md at commit 064c754: a data set
  that is registered as a benchmark, the task in it, a value; revision, date, source and notes where
  they are known.
- A task's score goes to the task's own data set, where that is a benchmark and the prompts are
  its own. Speeds are no score of it: they go to a benchmark of speeds that the user names.
- `notes` say what the value alone does not: the verdict, the interval, every caveat.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from datetime import datetime
from typing import Any, NamedTuple

from fspad_bench.benchmark.record import VANILLA
from fspad_bench.benchmark.rows import IDENTITY, Row
from fspad_bench.benchmark.titles import distribution
from fspad_bench.decoders.label import Label
from fspad_bench.publishing.facts import Facts, caveats, hub_card
from fspad_bench.publishing.private import base_name, decoder_name

BENCHMARKS = {"openai/gsm8k": "gsm8k"}  # data sets known to be benchmarks -> the id of the task
SPEEDS = ("speedup", "speedup_end_to_end", "tokens_per_step")
FOLDER = ".eval_results"
SHORT_HASH = 8
Entry = dict[str, Any]


class Published(NamedTuple):
    """Addresses of results: a benchmark of speeds, and the record, if there are any."""

    benchmark: str | None = None
    source: str | None = None


class ResultFile(NamedTuple):
    """A file of one row: its name, its entries."""

    name: str
    entries: list[Entry]


def result_files(facts: Facts, published: Published) -> list[ResultFile]:
    """Return a file for each row that has a result for the hub."""
    files: dict[str, ResultFile] = {}
    for row in facts.table:
        entries = _entries(row, facts, published)
        if entries:
            name = _file_name(row)
            if name in files:  # one decoder with two sets of options
                name = name.replace(".yaml", f"-{_hash(row)}.yaml")
            files[name] = ResultFile(name, entries)
    return list(files.values())


def _entries(row: Row, facts: Facts, published: Published) -> list[Entry]:
    entries = []
    card = hub_card(row)
    is_scored = row["score"] is not None and math.isfinite(row["score"])
    if card and card.dataset_path in BENCHMARKS and is_scored:
        dataset = {
            "id": card.dataset_path,
            "task_id": BENCHMARKS[card.dataset_path],
            "revision": card.revision,
        }
        count = facts.records.scored.get(row["record_key"]) or row["samples"]
        part = f"{row['metric']} in percent on {count} questions of the data set"
        entries.append(_entry(dataset, row["score"], part, row, facts, published))
    if published.benchmark and row["decoder"] != VANILLA:
        for name in SPEEDS:
            if row[name] is not None:
                dataset = {"id": published.benchmark, "task_id": _task_id(row, name)}
                part = f"{name} on {row['samples']} prompts{_interval(row, name)}"
                entries.append(_entry(dataset, row[name], part, row, facts, published))
    return entries


def _entry(
    dataset: dict[str, str], value: float, part: str, row: Row, facts: Facts, published: Published
) -> Entry:
    entry: Entry = {"dataset": dataset, "value": value}
    if date := _date(facts):
        entry["date"] = date
    if published.source:
        entry["source"] = {"url": published.source, "name": "fspad-bench record"}
    entry["notes"] = "; ".join([part, *_setting(row), *caveats(row, facts.records)])
    return entry


def _setting(row: Row) -> list[str]:
    return [
        f"decoder {Label.of(decoder_name(row['decoder'])).shown}",
        f"verdict {row['verdict']}",
        distribution(row),
        f"at most {row['max_new_tokens']} tokens",
        f"{row['dtype']} on {row['machine']}",
        f"fspad-bench {row['version']}",
    ]


def _task_id(row: Row, name: str) -> str:
    """Return the task of a benchmark of speeds, such as `gsm8k_speedup`."""
    return f"{row['task']}_{name}"


def _interval(row: Row, name: str) -> str:
    if row[f"{name}_low"] is None:
        return ""
    return f", 95% interval {row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f}"


def _date(facts: Facts) -> str:
    """Return when the run began, empty where the record does not say it."""
    try:
        return datetime.fromisoformat(str(facts.header.get("started"))).isoformat()
    except ValueError:
        return ""


def _file_name(row: Row) -> str:
    decoder = Label.of(decoder_name(row["decoder"])).shown
    text = f"{row['task']}-{base_name(row['data_source'])}-{decoder}-{distribution(row)}"
    return re.sub(r"[^\w.@+-]+", "_", text) + ".yaml"


def _hash(row: Row) -> str:
    identity = json.dumps([row[name] for name in IDENTITY], sort_keys=True, default=str)
    return hashlib.sha256(identity.encode()).hexdigest()[:SHORT_HASH]
