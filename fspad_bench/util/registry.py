"""Names of decoders, tasks, metrics, trainers and networks: built-in ones, and those that other
packages declare.

- A name stands for `"module:attribute"` in an entry-point group, resolved only when it is used, so
  listing names imports nothing heavy.
- What is registered nowhere works too: `package.module:Name`, or `file:Name` for a file in the
  working directory.
- A package that is broken, or that claims a name which another one has, harms nothing but the use
  of its own names.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoints, entry_points
from pathlib import Path
from typing import Any

from fspad_bench.util.errors import BenchError, near
from fspad_bench.util.strangers import contained, described, place_of
from fspad_bench.util.terminal import note

PACKAGE = "fspad_bench"
DECODERS = f"{PACKAGE}.decoders"
TASKS = f"{PACKAGE}.tasks"
TRAINERS = f"{PACKAGE}.trainers"
METRICS = f"{PACKAGE}.metrics"
EXECUTORS = f"{PACKAGE}.executors"


@dataclass(frozen=True)
class Claim:
    """A package's claim of what a name stands for: `value` is `module:attribute`."""

    value: str
    distribution: Distribution | None = None

    @property
    def package(self) -> str:
        """Return the package's name and version, read from its metadata; empty if it is unknown."""
        of = self.distribution
        return f"{of.name} {of.version}" if of else ""

    def __str__(self) -> str:
        return f"{self.value} ({self.package})" if self.package else self.value


def claims(group: str) -> dict[str, list[Claim]]:
    """Return every name of a group with what the installed packages claim that it stands for.

    More than one claim is a dispute; equal ones count once.
    """
    known: dict[str, dict[str, Claim]] = {}
    for entry in _declared(tuple(sys.path)).select(group=group):
        known.setdefault(entry.name, {}).setdefault(entry.value, Claim(entry.value, entry.dist))
    return {name: list(known[name].values()) for name in sorted(known)}


def names(group: str) -> dict[str, str]:
    """Return the registered names of a group and the object that each stands for, but for those in
    dispute.
    """
    return {name: of[0].value for name, of in claims(group).items() if len(of) == 1}


def usable(group: str) -> dict[str, Any]:
    """Return the objects of all names of a group.

    A name that is in dispute or cannot be loaded is left out, with a note.
    """
    loaded = {}
    for name in claims(group):
        try:
            loaded[name] = resolve(group, name)
        except BenchError as error:
            leave_out(error)
    return loaded


def leave_out(error: BenchError) -> None:
    """Tell the user that what a package registered is left out, and why."""
    note(f"note: left out: {error.message}; {error.hint}")


@cache
def _declared(path: tuple[str, ...]) -> EntryPoints:
    """Return what all packages on this path declare in our groups.

    Reading it takes some 20 ms, whatever part of it is wanted.
    """
    declared = entry_points()
    groups = [group for group in declared.groups if group.startswith(f"{PACKAGE}.")]
    return EntryPoints(entry for group in groups for entry in declared.select(group=group))


def resolve(group: str, name: str) -> Any:
    """Return the object of a registered name, or of `package.module:Name`.

    Raises BenchError for a name in dispute, and for an unknown one with the near match.
    """
    disputed = claims(group).get(name, [])
    if len(disputed) > 1:
        raise BenchError(
            f"the name '{name}' is claimed by {' and by '.join(map(str, disputed))}",
            "uninstall one of the packages",
        )
    known = names(group)
    value = known.get(name, name if ":" in name else None)
    if value is None:
        kind = group.rpartition(".")[2].removesuffix("s")
        raise BenchError(f"unknown {kind} '{name}'", near(name, known))
    module, _, attribute = value.partition(":")
    if module.endswith(".py"):
        raise BenchError(
            f"'{value}' names a file",
            f"write {Path(module).stem}:{attribute}, in the file's folder",
        )
    if name not in known:
        _see_working_directory()
    try:
        with contained():
            return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is anybody's code
        raise BenchError(
            f"cannot load '{name}' from {value}: {described(error)}{_place(error)}",
            _hint(error, module, attribute),
        ) from error


def _hint(error: Exception, module: str, attribute: str) -> str:
    """Return what to do about a module that cannot be loaded, or lacks the attribute."""
    top = module.partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and error.name:
        if error.name.partition(".")[0] == top:
            return f"is its name right? install its package, or run where {top}.py lies"
        return f"it imports {error.name}: install that"
    loaded = vars(sys.modules[module]) if module in sys.modules else {}
    if isinstance(error, AttributeError) and loaded and attribute not in loaded:
        classes = [name for name, own in loaded.items() if isinstance(own, type)]
        return f"is its name right? {near(attribute, classes)}"
    return "mend that line, or give another name"


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
