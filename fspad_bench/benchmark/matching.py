"""Which rows of two sets of records belong together: those of which the same was asked.

- Rows match where the fields `ASKED` are equal. Whatever else differs is reported, not refused: a
  change of the source, of a head, of the machine or of torch is what a comparison is made for.
- Where one decoder was asked with several options, rows match by options, hashes of files aside.
- Within two rows that match, generations of the same prompt belong together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any, NamedTuple

from fspad_bench.benchmark.generations import latest
from fspad_bench.benchmark.record import PENALTIES, VANILLA, Key, Records, Sample
from fspad_bench.benchmark.recorded_costs import is_sized
from fspad_bench.benchmark.rows import IDENTITY, Row, rows
from fspad_bench.benchmark.speeds import Pair

ASKED = (
    "target",
    "task",
    "data_source",
    "decoder",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    *PENALTIES,
    "seed",
    "max_new_tokens",
)
HASH = "_sha256"  # the end of an option's name that tells which file was read


class Turn(NamedTuple):
    """A prompt: one turn of a question, and the hash of its tokens."""

    sample: str
    turn: int
    prompt_sha256: str


class Match(NamedTuple):
    """A row of each side of which the same was asked."""

    a: Row
    b: Row

    @property
    def plain_options(self) -> str:
        """The options, hashes of files aside."""
        return _plain_options(self.a)

    @property
    def differences(self) -> dict[str, tuple[Any, Any]]:
        """The differences beside the figures: fields of the rows' keys, options by their names."""
        names = [name for name in IDENTITY if name not in (*ASKED, "options")]
        differing = {name: (self.a[name], self.b[name]) for name in names}
        options = dict.fromkeys([*self.a["options"], *self.b["options"]])
        for name in options:
            values = (self.a["options"].get(name), self.b["options"].get(name))
            differing[f"options.{name}"] = values
        return {name: values for name, values in differing.items() if values[0] != values[1]}


class Side:
    """One side of a comparison: some records, and the rows of their table."""

    def __init__(self, records: Sequence[Records]) -> None:
        self.records = records
        self.merged = merged(records)

    @cached_property
    def rows(self) -> list[Row]:
        """The rows that hold a generation."""
        return [row for row in rows(self.merged) if row["outputs"] or row["errors"]]

    @cached_property
    def _keys(self) -> dict[str, str]:
        return {_identity(vars(key)): name for name, key in self.merged.keys.items()}

    def is_sized(self, row: Row) -> bool:
        """Whether a decoder sized its trees by the costs that it measured on the machine."""
        return is_sized(self.merged, self.merged.keys[row["record_key"]])

    def samples(self, row: Row) -> dict[Turn, list[Sample]]:
        """Return the generations of a row that did not fail, of every record, by their prompts."""
        name = self._keys[_identity(row)]
        return _by_turn(sample for record in self.records for sample in _complete(record, name))

    def pairs(self, row: Row) -> dict[Turn, list[Pair]]:
        """Return a row's generations, each with vanilla's that was interleaved with it."""
        name = self._keys[_identity(row)]
        setting = self.merged.keys[name].setting
        pairs: dict[Turn, list[Pair]] = {}
        for record in self.records:
            vanilla = _vanilla(record.keys, setting)
            partners = {sample.place: sample for sample in _complete(record, vanilla)}
            for sample in _complete(record, name):
                if sample.place in partners:
                    pair = Pair(partners[sample.place], sample)
                    pairs.setdefault(_turn(sample), []).append(pair)
        return pairs


def matches(a: Side, b: Side) -> list[Match]:
    """Return the rows that belong together, in the order of A."""
    asked: dict[str, tuple[list[Row], list[Row]]] = {}
    for number, side in enumerate((a, b)):
        for row in side.rows:
            asked.setdefault(_asked(row), ([], []))[number].append(row)
    return [match for group in asked.values() for match in _matches_of(*group)]


def _matches_of(a: list[Row], b: list[Row]) -> list[Match]:
    """Match rows of one question, those that have most in common first."""
    if len(a) == len(b) == 1:
        return [Match(a[0], b[0])]
    found: list[Match] = []
    candidates = [Match(x, y) for x in a for y in b if _plain_options(x) == _plain_options(y)]
    for match in sorted(candidates, key=lambda match: len(match.differences)):
        if not any(match.a is known.a or match.b is known.b for known in found):
            found.append(match)
    order = [id(row) for row in a]
    return sorted(found, key=lambda match: order.index(id(match.a)))


def _plain_options(row: Row) -> str:
    plain = {name: value for name, value in row["options"].items() if not name.endswith(HASH)}
    return json.dumps(plain, sort_keys=True, default=str)


def _asked(row: Row) -> str:
    return json.dumps([row[name] for name in ASKED])


def _identity(content: dict[str, Any]) -> str:
    """Return the fields of a key as text; a row has None where a key has an empty text."""
    return json.dumps([content[name] or "" for name in IDENTITY], sort_keys=True, default=str)


def merged(every: Iterable[Records]) -> Records:
    """Return records as one."""
    whole = Records()
    for records in every:
        for field in fields(Records):
            value = getattr(records, field.name)
            if isinstance(value, dict):
                getattr(whole, field.name).update(value)
            elif isinstance(value, list):
                getattr(whole, field.name).extend(value)
    return whole


def _vanilla(keys: dict[str, Key], setting: tuple[Any, ...]) -> str:
    of_setting = (n for n, key in keys.items() if key.decoder == VANILLA and key.setting == setting)
    return next(of_setting, "")


def _complete(records: Records, name: str) -> list[Sample]:
    own = latest(sample for sample in records.samples if sample.key == name)
    return [sample for sample in own if not sample.error]


def _by_turn(samples: Iterable[Sample]) -> dict[Turn, list[Sample]]:
    turns: dict[Turn, list[Sample]] = {}
    for sample in samples:
        turns.setdefault(_turn(sample), []).append(sample)
    return turns


def _turn(sample: Sample) -> Turn:
    return Turn(sample.sample, sample.turn, sample.prompt_sha256)
