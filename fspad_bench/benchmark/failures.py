"""Failed generations: what the record says of them, and what the user sees.

A decoder that fails on one prompt often fails on all of them, in the same line: its traceback is
shown once, and then what failed again.
"""

from __future__ import annotations

from fspad_bench.decoders.build import Decoder
from fspad_bench.util.errors import BenchError
from fspad_bench.util.strangers import described, place_of
from fspad_bench.util.terminal import note, note_traceback


class Failures:
    """The failures of a run, each kind of which is shown in full once."""

    def __init__(self) -> None:
        self.shown: set[tuple[str, str, str, int | None]] = set()

    def tell(self, error: Exception, decoder: Decoder, sample: str) -> str:
        """Show the user that a decoder's generation failed; return what the record says of it."""
        where = f"{decoder.label}: {sample}"
        if isinstance(error, BenchError):  # says all: the prompt is too long, logits are not finite
            note(f"{where}: {error.message}")
            return error.message or type(error).__name__
        said = described(error) or type(error).__name__
        place = place_of(error)
        kind = (decoder.label, type(error).__name__, place.filename, place.lineno)
        if kind in self.shown:
            note(f"{where}: {said} (as above)")
        else:
            self.shown.add(kind)
            note_traceback(error)
            note(f"{where}: {said}")
        return said
