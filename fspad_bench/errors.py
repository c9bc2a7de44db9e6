"""The one error a user meets.

A `BenchError` says what is wrong, with the value, and what to do about it. The command line prints it as two
lines without a traceback and leaves with exit code 2; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """A mistake in the input or the surroundings that the user can mend."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def near(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known name, or else all of them."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listing = f"known: {', '.join(known)}" if known else "none are known"
    return f"did you mean '{match[0]}'? {listing}" if match else listing
