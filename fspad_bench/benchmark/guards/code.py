"""Whether this package's own functions are still those that were loaded.

A decoder runs in the same process: it can replace the loop, a clock's name or a session's method
for everybody.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

PACKAGE = "fspad_bench"


class CodeGuard:
    """The functions and classes of all modules of this package that are loaded by now."""

    def __init__(self) -> None:
        self.known = dict(_code())

    def changed(self) -> str:
        """Return the name of something that is another object now, empty where nothing is."""
        now = dict(_code())
        return next((name for name, code in self.known.items() if now.get(name) is not code), "")


def _code() -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, object) of every callable of every module, and a function's code."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and f"{name}.".startswith(f"{PACKAGE}."):
            yield from _callables(name, module)


def _callables(prefix: str, owner: Any) -> Iterator[tuple[str, Any]]:
    for name, value in list(vars(owner).items()):
        path = f"{prefix}.{name}"
        if isinstance(value, FunctionType):
            yield path, value.__code__
        elif isinstance(value, type) and value.__module__ == prefix:
            yield path, value
            yield from _callables(path, value)
        elif isinstance(value, staticmethod | classmethod | property) or callable(value):
            yield path, value
