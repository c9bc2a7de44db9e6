"""Names of decoders, tasks, trainers and networks: built-in ones, and those of any package that
declares them.

- A name stands for `"module:attribute"` in an entry-point group, resolved only when it is used, so
  listing names imports nothing heavy.
- What is registered nowhere works too: `package.module:Name`, or `file:Name` for a file in the
  working directory.
"""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import Any

from fspad_bench.errors import BenchError, near
from fspad_bench.util.strangers import contained, described, place_of

DECODERS = "fspad_bench.decoders"
TASKS = "fspad_bench.tasks"
TRAINERS = "fspad_bench.trainers"


def names(group: str) -> dict[str, str]:
    """Return every registered name of a group and the object it stands for.

    Raises BenchError for a name that two packages claim.
    """
    known: dict[str, str] = {}
    for entry in _declared(group, tuple(sys.path)):
        if known.setdefault(entry.name, entry.value) != entry.value:
            raise BenchError(
                f"the name '{entry.name}' is claimed by {known[entry.name]} and by {entry.value}",
                "uninstall one of the two packages",
            )
    return dict(sorted(known.items()))


@cache
def _declared(group: str, path: tuple[str, ...]) -> EntryPoints:
    """Return what all packages on this path declare in a group. Reading it takes some 40 ms."""
    return entry_points(group=group)


def resolve(group: str, name: str) -> Any:
    """Return the object of a registered name, or of `package.module:Name`.

    Raises BenchError with the near match.
    """
    known = names(group)
    value = known.get(name, name if ":" in name else None)
    if value is None:
        kind = group.rpartition(".")[2].removesuffix("s")
        raise BenchError(f"unknown {kind} '{name}'", near(name, known))
    module, _, attribute = value.partition(":")
    if name not in known:
        _see_working_directory()
    try:
        with contained():
            return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is anybody's code
        raise BenchError(
            f"cannot load '{name}' from {value}: {described(error)}{_place(error)}",
            "is the package installed, the name right?",
        ) from error


def _place(error: BaseException) -> str:
    """Return where the code at fault stands, if that is known: ` (file:line)`."""
    where = place_of(error)
    file, line = where.filename, where.lineno
    if isinstance(error, SyntaxError):  # raised by the importer, not by the line
        file, line = error.filename or "", error.lineno
    return f" ({file}:{line})" if Path(file).suffix == ".py" else ""


def _see_working_directory() -> None:
    """Let modules in the working directory be found, after all installed ones.

    None of them is shadowed.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
