"""The error that a user meets.

A `BenchError` says what is wrong, with the value, and what to do about it. The command line prints
it as two lines without a traceback; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """A mistake in the input or the environment that the user can correct."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class TargetLost(BaseException):
    """A target that answers no more.

    It ends what is under way as Ctrl-C does: nothing that goes on after an exception could.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def near(name: str, known: Iterable[str]) -> str:
    """Return a hint that lists the known names, after the one most like `name` if any is close."""
    names = sorted(known)
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listing = f"known: {', '.join(names)}" if names else "none are known"
    return f"did you mean '{matches[0]}'? {listing}" if matches else listing
