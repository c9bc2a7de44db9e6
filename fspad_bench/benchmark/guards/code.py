"""Whether this package's own functions are still those that were loaded.

A decoder runs in the same process: it can replace the loop, a clock's name or a session's method
for everybody.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from operator import attrgetter, is_
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

PACKAGE = "fspad_bench"
DESCRIPTORS = (staticmethod, classmethod, property, cached_property)
code_of = attrgetter("__code__")


class Namespace(NamedTuple):
    """The objects that the names of a module or class stood for, and its functions' code.

    A function is the same object when its code is replaced. `callers` are the names by which the
    functions are called.
    """

    path: str
    now: Mapping[str, Any]
    names: list[str]
    values: list[Any]
    callers: list[str]
    functions: list[FunctionType]
    codes: list[CodeType]

    @classmethod
    def of(cls, path: str, owner: Any) -> Namespace:
        """Look at the callables of a module or class."""
        now = vars(owner)
        names, values, callers, functions = [], [], [], []
        for name, value in list(now.items()):
            if callable(value) or isinstance(value, DESCRIPTORS):
                names.append(name)
                values.append(value)
                inner = _functions(value)
                functions += inner
                callers += [name] * len(inner)
        return cls(path, now, names, values, callers, functions, list(map(code_of, functions)))

    def changed(self) -> str:
        """Return the path of something that is another object now, empty where nothing is."""
        for names, now, before in (
            (self.names, map(self.now.get, self.names), self.values),
            (self.callers, map(code_of, self.functions), self.codes),
        ):
            same = list(map(is_, now, before))
            if not all(same):
                return f"{self.path}.{names[same.index(False)]}"
        return ""


class CodeGuard:
    """The functions and classes of all modules of this package that are loaded by now."""

    def __init__(self) -> None:
        self.modules = {
            name: module
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] == PACKAGE and isinstance(module, ModuleType)
        }
        self.known = [known for item in self.modules.items() for known in _namespaces(*item)]

    def changed(self) -> str:
        """Return the path of something that is another object now, empty where nothing is."""
        for name, module in self.modules.items():
            if sys.modules.get(name) is not module:
                return name
        return next(filter(None, (known.changed() for known in self.known)), "")


def _namespaces(name: str, module: ModuleType) -> Iterator[Namespace]:
    """Yield a module's names, and those of the classes that it defines."""
    yield Namespace.of(name, module)
    for key, value in list(vars(module).items()):
        if isinstance(value, type) and value.__module__ == name:
            yield Namespace.of(f"{name}.{key}", value)


def _functions(value: Any) -> list[FunctionType]:
    """Return the functions that a callable or descriptor runs: itself and what it wraps."""
    inner: tuple[Any, ...]
    if isinstance(value, property):
        inner = (value.fget, value.fset, value.fdel)
    elif isinstance(value, cached_property):
        inner = (value.func,)
    else:
        inner = (getattr(value, "__wrapped__", None),)
    found = [value] if isinstance(value, FunctionType) else []
    return found + [each for one in inner if one is not None for each in _functions(one)]
