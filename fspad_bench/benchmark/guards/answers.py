"""Answers of a turn, kept out of sight while other decoders run.

An answer that lies about as an object can be found by whoever walks the heap, and drafted. As
compressed bytes it is not found in passing. `docs/what-a-row-is-worth.md` says what this does not
prevent.
"""

from __future__ import annotations

import pickle
import zlib

from fspad_bench.benchmark.record import Sample


class Sealed:
    """Samples by decoder, as bytes until all decoders have had their turn."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def put(self, label: str, sample: Sample) -> None:
        self.content[label] = zlib.compress(pickle.dumps(sample), level=1)

    def opened(self) -> dict[str, Sample]:
        """Return the samples; nothing more may run in this turn."""
        return {label: pickle.loads(zlib.decompress(c)) for label, c in self.content.items()}
