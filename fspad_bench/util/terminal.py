r"""Print text: the one door to stdout and stderr.

Records, files and plug-ins are written by strangers, and a terminal obeys what they hold: an escape
sequence moves the cursor, changes colours or titles, and a carriage return overwrites a line. Such
characters are shown as Python writes them, `\x1b` in place of Escape.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO

# C0 and C1, line and paragraph separators, what reverses the order of text, halves of pairs
CONTROLS = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
CONTROL = re.compile(f"[{CONTROLS}]")
CONTROL_IN_LINES = re.compile(f"(?!\n)[{CONTROLS}]")

_results: TextIO | None = None  # stdout, while what others print there goes to stderr


def visible(text: str) -> str:
    """Return a text in one line, its control characters escaped."""
    return CONTROL.sub(_escaped, text)


def visible_lines(text: str) -> str:
    """Return a text of several lines, its control characters but for the ends of lines escaped."""
    return CONTROL_IN_LINES.sub(_escaped, text)


@contextmanager
def results_alone() -> Iterator[None]:
    """Leave stdout to `show`: what others print there, as plug-ins do, goes to stderr."""
    global _results
    before = _results
    _results = before or sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results = before


def show(text: str) -> None:
    """Print lines of a result to stdout."""
    print(visible_lines(text), file=_results or sys.stdout)


def note(text: str) -> None:
    """Print a line for the user, no result, to stderr.

    A stderr that is full, closed or gone says nothing, and ends no work.
    """
    with suppress(OSError, ValueError, AttributeError):
        print(visible(text), file=sys.stderr, flush=True)


def note_traceback(error: BaseException) -> None:
    """Print the traceback of an exception to stderr."""
    for line in "".join(traceback.format_exception(error)).splitlines():
        note(line)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
