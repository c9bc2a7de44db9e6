"""Names of decoders: built-in ones, and those of any package that declares the entry-point group.

A name stands for `"module:attribute"`, resolved only when it is used, so listing names imports nothing heavy. Third
parties add themselves in the group `fspad_bench.decoders` (and tasks in `fspad_bench.tasks`); a class that is not
registered anywhere works too, as `package.module:Class` or, in a file of the working directory, `file:Class`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from fspad_bench.errors import BenchError, near

DECODERS = "fspad_bench.decoders"
TASKS = "fspad_bench.tasks"


class Label(NamedTuple):
    """`own=decoder@preset` in its parts; `own` and `preset` may be empty."""

    own: str
    decoder: str
    preset: str

    @classmethod
    def of(cls, text: str) -> Label:
        own, _, rest = text.rpartition("=")
        decoder, _, preset = rest.partition("@")
        return cls(own, decoder, preset)

    @property
    def shown(self) -> str:
        """What a table calls it."""
        return self.own or "@".join(filter(None, [self.decoder, self.preset]))

    @property
    def listens_to(self) -> tuple[str, ...]:
        """The names that its options may be given under, the last one heeded first."""
        return (self.own,) if self.own else (self.decoder, self.shown)


def names(group: str) -> dict[str, str]:
    """Every registered name of a group and the object it stands for. Raises BenchError on a name claimed twice."""
    found: dict[str, str] = {}
    for entry in entry_points(group=group):
        if found.setdefault(entry.name, entry.value) != entry.value:
            raise BenchError(
                f"the name '{entry.name}' is claimed by {found[entry.name]} and by {entry.value}",
                "uninstall one of the two packages",
            )
    return dict(sorted(found.items()))


def resolve(group: str, name: str) -> Any:
    """The object of a registered name, or of `package.module:Attribute`. Raises BenchError with the near match."""
    known = names(group)
    value = known.get(name, name if ":" in name else None)
    if value is None:
        raise BenchError(
            f"unknown {group.rpartition('.')[2].removesuffix('s')} '{name}'", near(name, known)
        )
    module, _, attribute = value.partition(":")
    if name not in known and "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(
            0, os.getcwd()
        )  # a decoder in a file beside the user, as `python -m` would find it
    try:
        return getattr(importlib.import_module(module), attribute)
    except (
        ImportError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:  # the last two for `.x:A` and `:A`
        where = traceback.extract_tb(error.__traceback__)[-1]
        within = (
            f" ({where.filename}:{where.lineno})" if Path(where.filename).suffix == ".py" else ""
        )
        raise BenchError(
            f"cannot load '{name}' from {value}: {type(error).__name__}: {error}{within}",
            "is the package installed, the name right?",
        ) from error


def options_of(decoder: type, raw: dict[str, str], label: str) -> dict[str, Any]:
    """All options of a decoder class: its keyword defaults, overridden by `raw` values read by their annotation."""
    if not callable(decoder):
        raise BenchError(
            f"{label} is no decoder but {decoder!r:.60}", "name a class, as package.module:Class"
        )
    parameters = list(inspect.signature(decoder).parameters.values())[1:]
    known = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    options = {name: p.default for name, p in known.items() if p.default is not p.empty}
    for name, text in raw.items():
        if name not in known:
            raise BenchError(f"{label} has no option '{name}'", near(name, known))
        options[name] = _read(text, _kind(known[name]), f"{label}.{name}")
    for name in known:
        if name not in options:
            raise BenchError(
                f"{label} needs its option '{name}'", f"give it with -D {label}.{name}=VALUE"
            )
    return options


def _kind(option: inspect.Parameter) -> type:
    """What an option is read as: by its annotation (`float`, `"int | None"`), or else like its default."""
    written = inspect.formatannotation(option.annotation).partition("|")[0].strip(" '\"")
    kinds = {kind.__name__: kind for kind in (bool, int, float, str)}
    like = type(option.default) if isinstance(option.default, bool | int | float) else str
    return kinds.get(written, like)


def _read(text: str, kind: type, name: str) -> Any:
    """An option's text as a truth value, a number or itself."""
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise BenchError(f"{name}={text} is neither true nor false", "write true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError as error:
        raise BenchError(
            f"{name}={text} is not {'an integer' if kind is int else 'a number'}",
            f"give {name} a number",
        ) from error
