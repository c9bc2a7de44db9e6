"""Exceptions of code that this package did not write: plug-ins, templates, other libraries.

- `contained` lets nothing but exceptions and Ctrl-C through: a SystemExit would end the run with
  its own code, and a panic of a Rust library passes by `except Exception`.
- The message of an exception may raise, or be empty: then its kind stands alone.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from fspad_bench.util.errors import TargetLost
from fspad_bench.util.memory import is_out_of_memory


class ForeignExitError(Exception):
    """A SystemExit, or another exception of strangers' code that is none of Python's Exceptions."""


@contextmanager
def contained() -> Iterator[None]:
    """Raise ForeignExitError in place of what is no Exception, but for Ctrl-C and a lost target."""
    try:
        yield
    except (Exception, KeyboardInterrupt, TargetLost):
        raise
    except BaseException as error:
        raise ForeignExitError(described(error)) from error


def message_of(error: BaseException) -> str:
    """Return an exception's message in one line, empty where it has none or raises."""
    return " ".join(_text(error).split())


def first_line_of(error: BaseException) -> str:
    """Return the first line of an exception's message, empty where it has none or raises."""
    return next(iter(_text(error).strip().splitlines()), "")


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # its own `__str__` is at fault
        return ""


def described(error: BaseException) -> str:
    """Return kind and message of an exception in one line; running out of memory is called so."""
    if isinstance(error, ForeignExitError):
        return message_of(error)
    text = f"{type(error).__name__}: {message_of(error)}".removesuffix(": ")
    return f"out of memory: {text}" if is_out_of_memory(error) else text


def place_of(error: BaseException) -> traceback.FrameSummary:
    """Return the line that raised an exception."""
    if isinstance(error, ForeignExitError) and error.__cause__ is not None:
        error = error.__cause__
    return traceback.extract_tb(error.__traceback__)[-1]
