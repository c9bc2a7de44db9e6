"""Answers of a turn, kept out of sight while other decoders run.

An answer that lies about as an object can be found by whoever walks the heap, and drafted. As
compressed bytes it is not found in passing. `docs/what-a-row-is-worth.md` says what this does not
prevent.
"""

from __future__ import annotations

import pickle
import zlib
from typing import Any

from fspad_bench.benchmark.record import Sample


class Sealed:
    """Samples by decoder, as bytes until all decoders have had their turn."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def put(self, label: str, sample: Sample) -> None:
        self.content[label] = sealed(sample)

    def opened(self) -> dict[str, Sample]:
        """Return the samples; nothing more may run in this turn."""
        return {label: opened(content) for label, content in self.content.items()}


def sealed(value: Any) -> bytes:
    """Return a value as compressed bytes."""
    return zlib.compress(pickle.dumps(value), level=1)


def opened(content: bytes) -> Any:
    """Return the value of `sealed` bytes."""
    return pickle.loads(zlib.decompress(content))
