"""Turn what other code hands over into plain values: what JSON writes is what JSON reads.

- JSON has no number that is not finite, and its readers none beyond 64 bits: these become text.
- The text of an object is the same in every process: without its address.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from typing import Any

DEEPEST = 32
LARGEST = 2**31 - 1
LONGEST_STEP = 2**16  # tokens
JSON_LARGEST = 2**63 - 1
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as None, a truth value, a number, a text, a list or a dictionary of them.

    Scalars of numpy and torch become numbers. What is none of these becomes its text, and so does
    what is nested more than `DEEPEST` deep.
    """
    if value is None or type(value) in (bool, int, float):
        return value if _fits(value) else _number_text(value)
    if isinstance(value, str):
        return text(value)
    if depth < DEEPEST:
        if isinstance(value, Mapping):
            return {_name(name): plain(item, depth + 1) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item, depth + 1) for item in value]
        if isinstance(value, set | frozenset):
            return sorted((plain(item, depth + 1) for item in value), key=str)
    return _scalar(value)


def text(value: str) -> str:
    """Return a text that UTF-8 can write: half of a surrogate pair becomes a question mark."""
    return value.encode("utf-8", "replace").decode("utf-8")


def whole(value: Any, name: str, most: int = LARGEST) -> int:
    """Return a whole number from 0 to `most`. Raises TypeError or ValueError for another value."""
    try:
        number = operator.index(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} holds {_start(value)}, not a whole number") from error
    if not 0 <= number <= most or isinstance(value, bool):
        raise ValueError(f"{name} holds {_start(value)}, not a whole number from 0 to {most}")
    return number


def seconds(value: Any, name: str) -> float:
    """Return a time. Raises TypeError or ValueError unless it is a finite number of 0 or more."""
    if isinstance(value, str | bytes | bool):
        raise TypeError(f"{name} is {value!r:.60}, not a number")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name} is {_start(value)}, not a number") from error
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} is {number}, not a time")
    return number


def _start(value: Any) -> str:
    """Return the beginning of a value as Python writes it, or else of its text."""
    try:
        return f"{value!r:.60}"
    except Exception:  # a number of too many digits, or an error of its own
        return f"{plain(value)!s:.60}"


def _scalar(value: Any) -> Any:
    """Return the number that an object of another library stands for, or else its text."""
    try:
        number = value.item() if hasattr(value, "item") else float(value)
    except Exception:  # any object at all: an array of several numbers
        return shown(value)
    return plain(number) if type(number) in (bool, int, float) else shown(number)


def shown(value: Any) -> str:
    """Return the text of any object, of its kind alone where it has none."""
    try:
        return text(ADDRESS.sub("", str(value)))
    except Exception:  # a number of too many digits, or an error of its own
        return f"<{type(value).__name__}>"


def _name(name: Any) -> str:
    """Return a key of a dictionary as the text that JSON needs."""
    return text(name) if isinstance(name, str) else str(plain(name, DEEPEST))


def _fits(value: float | None) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or abs(value) <= JSON_LARGEST


def _number_text(value: float) -> str:
    """Return a number that JSON does not hold; a whole one in hexadecimal, of any length."""
    return hex(value) if isinstance(value, int) else str(value)
