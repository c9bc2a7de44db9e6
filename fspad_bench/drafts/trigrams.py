"""Tri-grams: for each pair of tokens, what followed it and how strongly.

- A `TrigramTable` is built from texts once and lies in a folder: `table.safetensors` holds the
  pairs in ascending order and their best successors with probabilities, `table.json` the
  tokenizer's hash, the data's hash and counts. Its token ids are that tokenizer's alone.
- `Trigrams` are the values while decoding: those of a table, or none, and what was learned since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import disk_errors, replacing, write_atomically
from fspad_bench.util.text import json_file

FORMAT = 1
ABOUT = "table.json"
VALUES = "table.safetensors"
SUCCESSORS = 12  # of a pair
STEP = 0.04
CAP = 3.0
DAMAGED = "build it again with `fspad-bench train --decoder aded`"

Successors = list[tuple[int, float]]
"""Tokens and their values, highest value first, lowest token first where values are equal."""


@dataclass(frozen=True)
class TrigramTable:
    """The best successors of P pairs: those of pair i are `tokens[starts[i]:starts[i + 1]]`.

    `keys [P]` ascend: `first << 32 | second`. `values` are probabilities among all successors.
    """

    keys: NDArray[np.int64]
    starts: NDArray[np.int32]
    tokens: NDArray[np.int32]
    values: NDArray[np.float32]
    facts: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def after(self, first: int, second: int) -> dict[int, float]:
        """Return the successors of a pair and their probabilities, the likeliest first."""
        key = first << 32 | second
        i = int(np.searchsorted(self.keys, key))
        if i == len(self.keys) or self.keys[i] != key:
            return {}
        own = slice(self.starts[i], self.starts[i + 1])
        return dict(zip(self.tokens[own].tolist(), self.values[own].tolist(), strict=True))

    def save(self, folder: Path) -> None:
        """Write the folder; the description comes last: half a folder is no table."""
        arrays = {
            "pairs": np.stack([self.keys >> 32, self.keys & 0xFFFFFFFF], axis=1).astype(np.int32),
            "starts": self.starts,
            "tokens": self.tokens,
            "values": self.values,
        }
        about = self.facts | {
            "format": FORMAT,
            "pairs": len(self.keys),
            "trigrams": len(self.tokens),
        }
        with disk_errors(folder, SafetensorError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ABOUT).unlink(missing_ok=True)
            with replacing(folder / VALUES) as part:
                save_file(arrays, part)
            write_atomically(folder / ABOUT, json.dumps(about, indent=2) + "\n")


class Trigrams:
    """The values of tri-grams: a table's, raised by `STEP` each time that one is seen, to `CAP`."""

    def __init__(self, table: TrigramTable | None = None) -> None:
        self.table = table
        self.values: dict[tuple[int, int], dict[int, float]] = {}

    def after(self, first: int, second: int) -> Successors:
        """Return the best successors of a pair."""
        values = self._values(first, second)
        ranked = sorted(values.items(), key=lambda entry: (-entry[1], entry[0]))
        return ranked[:SUCCESSORS]

    def learn(self, tokens: Sequence[int]) -> None:
        """Raise the value of each tri-gram of a text."""
        for first, second, third in zip(tokens, tokens[1:], tokens[2:], strict=False):
            values = self.values.setdefault((first, second), self._values(first, second))
            values[third] = min(CAP, values.get(third, 0.0) + STEP)

    def _values(self, first: int, second: int) -> dict[int, float]:
        known = self.values.get((first, second))
        if known is None:
            known = self.table.after(first, second) if self.table else {}
        return known


def count_trigrams(
    texts: Iterable[tuple[Sequence[int], Sequence[tuple[int, int]]]],
    vocabulary_size: int,
    facts: dict[str, Any],
) -> TrigramTable:
    """Build a table of the tri-grams whose last token lies in a span `[start, end)` of its text."""
    parts = [_codes(tokens, spans, vocabulary_size) for tokens, spans in texts]
    every = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    codes, counts = np.unique(every, return_counts=True)
    pairs = codes // vocabulary_size
    tokens = codes % vocabulary_size
    own, place = np.unique(pairs, return_inverse=True)
    totals = np.bincount(place, weights=counts, minlength=len(own))
    order = np.lexsort((tokens, -counts, place))
    first_of_pair = np.searchsorted(place[order], np.arange(len(own)))
    rank = np.arange(len(order)) - first_of_pair[place[order]]
    kept = order[rank < SUCCESSORS]
    sizes = np.bincount(place[kept], minlength=len(own))
    return TrigramTable(
        keys=own // vocabulary_size << 32 | own % vocabulary_size,
        starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32),
        tokens=tokens[kept].astype(np.int32),
        values=(counts[kept] / totals[place[kept]]).astype(np.float32),
        facts=facts,
    )


def load_table(folder: Path, tokenizer: str, target: str) -> TrigramTable:
    """Load a table. Raises BenchError unless it was built for the tokenizer of this hash."""
    if not (folder / ABOUT).is_file():
        raise BenchError(
            f"no tri-gram table at {folder}",
            "build one with `fspad-bench train --decoder aded`, or leave table= out",
        )
    about = json_file(folder / ABOUT, DAMAGED)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise BenchError(f"{folder / ABOUT} describes no tri-gram table", DAMAGED)
    if about.get("tokenizer") != tokenizer:
        raise BenchError(
            f"{folder} was built for {about.get('target')}, whose tokenizer is not {target}'s",
            f"build one for it: fspad-bench train --decoder aded --target {target}",
        )
    try:
        arrays = load_file(folder / VALUES)
        pairs = arrays["pairs"].astype(np.int64)
        keys = pairs[:, 0] << 32 | pairs[:, 1]
        table = TrigramTable(
            keys, arrays["starts"], arrays["tokens"], arrays["values"], about, _hash(folder)
        )
        _check(table, int(about["vocabulary_size"]))
    except (OSError, SafetensorError, KeyError, ValueError, IndexError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BenchError(f"{folder} is not a usable tri-gram table: {reason}", DAMAGED) from error
    return table


def _codes(
    tokens: Sequence[int], spans: Sequence[tuple[int, int]], vocabulary_size: int
) -> NDArray[np.int64]:
    """Return each tri-gram that ends in a span as one number, [n]."""
    text = np.asarray(tokens, np.int64)
    places = [np.arange(max(2, start), end, dtype=np.int64) for start, end in spans]
    ends = np.concatenate([np.zeros(0, np.int64), *places])
    first, second, third = text[ends - 2], text[ends - 1], text[ends]
    return (first * vocabulary_size + second) * vocabulary_size + third


def _check(table: TrigramTable, vocabulary_size: int) -> None:
    """Raise ValueError unless the arrays fit each other and the vocabulary."""
    sizes = (len(table.keys) + 1, int(table.starts[-1]), len(table.values))
    if sizes != (len(table.starts), len(table.tokens), len(table.tokens)):
        raise ValueError("its arrays do not fit each other")
    if (np.diff(table.keys) <= 0).any() or (np.diff(table.starts) <= 0).any():
        raise ValueError("its pairs are not in order")
    ids = np.concatenate([table.keys >> 32, table.keys & 0xFFFFFFFF, table.tokens])
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary_size:
        raise ValueError(f"a token id outside the vocabulary of {vocabulary_size}")
    if not ((table.values > 0) & (table.values <= 1)).all():
        raise ValueError("a value that is not a probability")


def _hash(folder: Path) -> str:
    """Return the sha256 over the contents of both files."""
    total = hashlib.sha256()
    for name in (VALUES, ABOUT):
        total.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return total.hexdigest()
