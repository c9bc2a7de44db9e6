"""Turn what other code hands over into plain values: what JSON writes is what JSON reads."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

DEEPEST = 32
LARGEST = 2**31 - 1
LONGEST_STEP = 2**16  # tokens


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as None, a truth value, a number, a text, a list or a dictionary of them.

    Scalars of numpy and torch become numbers. What is none of these becomes its text, and so does
    what is nested more than `DEEPEST` deep.
    """
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        return text(value)
    if depth < DEEPEST:
        if isinstance(value, Mapping):
            return {text(str(name)): plain(item, depth + 1) for name, item in value.items()}
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
        raise TypeError(f"{name} holds {value!r:.60}, not a whole number") from error
    if not 0 <= number <= most or isinstance(value, bool):
        raise ValueError(f"{name} holds {value!r:.60}, not a whole number from 0 to {most}")
    return number


def seconds(value: Any, name: str) -> float:
    """Return a time. Raises TypeError or ValueError unless it is a finite number of 0 or more."""
    if isinstance(value, str | bytes | bool):
        raise TypeError(f"{name} is {value!r:.60}, not a number")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is {value!r:.60}, not a number") from error
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} is {number}, not a time")
    return number


def _scalar(value: Any) -> Any:
    """Return the number that an object of another library stands for, or else its text."""
    try:
        number = value.item() if hasattr(value, "item") else float(value)
        return number if type(number) in (bool, int, float) else text(str(number))
    except Exception:  # any object at all: an array of several numbers
        return text(str(value))
