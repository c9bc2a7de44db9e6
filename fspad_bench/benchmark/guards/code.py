"""Whether this package's own functions are still those that were loaded.

A decoder runs in the same process: it can replace the loop, a clock's name or a session's method
for everybody.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import CodeType, ModuleType
from typing import Any, NamedTuple

PACKAGE = "fspad_bench"
DESCRIPTORS = (staticmethod, classmethod, property)


class Known(NamedTuple):
    """The object that a name of a module or class stood for; `code` is a function's, which can be
    replaced.
    """

    path: str
    namespace: Mapping[str, Any]
    name: str
    value: Any
    code: CodeType | None


class CodeGuard:
    """The functions and classes of all modules of this package that are loaded by now."""

    def __init__(self) -> None:
        self.modules = dict(_modules())
        self.known = [
            known for name, module in self.modules.items() for known in _callables(name, module)
        ]

    def changed(self) -> str:
        """Return the name of something that is another object now, empty where nothing is."""
        for name, module in self.modules.items():
            if sys.modules.get(name) is not module:
                return name
        for path, namespace, name, value, code in self.known:
            if namespace.get(name) is not value or _code(value) is not code:
                return path
        return ""


def _modules() -> Iterator[tuple[str, ModuleType]]:
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and f"{name}.".startswith(f"{PACKAGE}."):
            yield name, module


def _code(value: Any) -> CodeType | None:
    return getattr(value, "__code__", None)


def _callables(prefix: str, owner: Any) -> Iterator[Known]:
    """Yield every callable of a module or class, and those of the classes that it defines."""
    namespace = vars(owner)
    for name, value in list(namespace.items()):
        path = f"{prefix}.{name}"
        if callable(value) or isinstance(value, DESCRIPTORS):
            yield Known(path, namespace, name, value, _code(value))
        if isinstance(value, type) and value.__module__ == prefix:
            yield from _callables(path, value)
