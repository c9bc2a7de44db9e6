"""Records as golden acceptance lengths: curves that other engines replay.

- The format is that of SemiAnalysis InferenceX, `golden_al_distribution` (2026): by model and mode,
  tokens per step by the number of drafted tokens, two decimals.
- AL = 1 + accepted draft tokens / steps, pooled over all steps of all prompts.
- Only chains of one length have a place in it: trees, and drafts whose length follows the text or
  the machine, have none. Rows whose output is not shown to be the target's are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import yaml

from fspad_bench.benchmark.record import Sample
from fspad_bench.benchmark.titles import distribution
from fspad_bench.decoders.label import Label
from fspad_bench.publishing.facts import Facts, caveats, dataset_name, model_id
from fspad_bench.publishing.private import base_name, decoder_name

MODE = "thinking_off"  # the format's name for a chat template without a reasoning mode
PROVEN = ("exact", "tie", "law")


class Point(NamedTuple):
    """A row's mean acceptance length with so many drafted tokens."""

    drafts: int
    length: float
    caveats: list[str]


class GoldenFile(NamedTuple):
    """A curve of one decoder on one task: its file's name and text."""

    name: str
    text: str


def golden_files(facts: Facts, model: str | None, source: str | None) -> list[GoldenFile]:
    """Return a file for each decoder, task and way to sample that drafted chains of one length."""
    name = model_id(facts.target, model)
    curves: dict[tuple[str, ...], list[Point]] = {}
    for row in facts.table:
        samples = facts.samples(row)
        drafts = chain_length(samples, row["max_new_tokens"])
        if drafts is None or row["verdict"] not in PROVEN:
            continue
        method = Label.of(decoder_name(row["decoder"])).decoder
        limit = str(row["max_new_tokens"])
        place = (method, dataset_name(row), distribution(row), row["dtype"], limit)
        point = Point(drafts, acceptance_length(samples), caveats(row, facts))
        curves.setdefault(place, []).append(point)
    return [_file(place, points, name, facts, source) for place, points in curves.items()]


def chain_length(samples: Sequence[Sample], limit: int) -> int | None:
    """Return how many tokens each step drafted; None for trees, and where the number changes.

    Steps close to the limit have no room for all of them.
    """
    if not samples or any(sample.depths is None for sample in samples):
        return None
    most = max((n for sample in samples for n in sample.drafted), default=0)
    if not most or any(sample.depths != sample.drafted for sample in samples):
        return None
    for sample in samples:
        made = 1
        for drafted, committed in zip(sample.drafted, sample.committed, strict=True):
            if drafted < most and limit - made > most + 1:
                return None
            made += committed
    return most


def acceptance_length(samples: Sequence[Sample]) -> float:
    """Return 1 + accepted draft tokens / steps."""
    steps = sum(len(sample.committed) for sample in samples)
    return 1 + sum(len(path) for sample in samples for path in sample.ranks or ()) / steps


def _file(
    place: tuple[str, ...], points: list[Point], model: str, facts: Facts, source: str | None
) -> GoldenFile:
    method, task, sampling, dtype, limit = place
    points = sorted(points)
    comments = [
        f"Source: {source or 'a record of fspad-bench with the sha256 ' + facts.sha256}",
        f"dataset: {task} | {sampling} | output_len: {limit} | dtype: {dtype}",
        f"Measured with fspad-bench {facts.header.get('version', '')}, decoder {method}",
        "AL = 1 + accepted draft tokens / steps; key = drafted tokens, value = AL",
        *dict.fromkeys(text for point in points for text in point.caveats),
    ]
    lengths = {point.drafts: round(point.length, 2) for point in points}
    text = "".join(f"# {' '.join(comment.split())}\n" for comment in comments)
    text += yaml.safe_dump({model: {MODE: lengths}}, sort_keys=False)
    name = "-".join([model.replace("/", "_"), method, task, sampling, dtype, limit])
    return GoldenFile(base_name(name).replace(" ", "_").replace(",", "") + ".yaml", text)
