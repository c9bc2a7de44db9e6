"""How a decoder is named on the command line, and how its options are read.

A label is `name`, `name@preset`, `package.module:Class` or `served:URL`; `other=` in front of it
gives it a name of its own, so that one run can compare a decoder with itself: `fspad,deep=fspad -D
deep.depth=5`.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Literal, NamedTuple

from fspad_bench.util.address import check_no_secret
from fspad_bench.util.errors import BenchError, near

LARGEST = 2**63 - 1  # of numbers: what computes with them has 64 bits
SERVED = "served:"  # before the address of a served engine
CONTAINERS = (list, tuple, set, frozenset, dict, Sequence, Mapping)
LONG = 40  # characters of a value that a message shows


class Label(NamedTuple):
    """`own=decoder@preset` in its parts; `own` and `preset` may be empty."""

    own: str
    decoder: str
    preset: str

    @classmethod
    def of(cls, text: str) -> Label:
        """Read a label. Raises BenchError for a server's address that may hold a secret."""
        own, is_served, address = f"={text}".partition(f"={SERVED}")
        if is_served:
            check_no_secret(address)
            return cls(own.removeprefix("="), SERVED + address, "")
        own, _, rest = text.rpartition("=")
        decoder, _, preset = rest.partition("@")
        return cls(own, decoder, preset)

    @property
    def shown(self) -> str:
        """The name in a table."""
        return self.own or "@".join(filter(None, [self.decoder, self.preset]))

    @property
    def served(self) -> str:
        """The address of a served engine, empty for other decoders."""
        return self.decoder.removeprefix(SERVED) if self.decoder.startswith(SERVED) else ""

    @property
    def option_prefixes(self) -> tuple[str, ...]:
        """Accepted prefixes of `-D`, lowest precedence first."""
        if self.own:
            return (self.own,)
        return ("served",) if self.served else (self.decoder, self.shown)


def read_options(decoder: type, raw: dict[str, str], label: str) -> dict[str, Any]:
    """Return all options of a decoder class: its keyword defaults, overridden by `raw` texts read
    by their annotation.

    Raises BenchError for an unknown option, a missing one, and a text that does not fit its
    annotation.
    """
    if not callable(decoder):
        raise BenchError(
            f"{label} is not a decoder class: {decoder!r:.60}",
            "name a class, as package.module:Class",
        )
    try:
        parameters = list(inspect.signature(decoder).parameters.values())[1:]
    except ValueError as error:  # of Python's own
        raise BenchError(f"{label} is not a decoder class: {error}", "name a class") from error
    known = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    options = {name: p.default for name, p in known.items() if p.default is not p.empty}
    kinds = _annotations(decoder)
    for name, text in raw.items():
        if name not in known:
            raise BenchError(f"{label} has no option '{name}'", near(name, known))
        kind = kinds.get(name, _kind_of_default(known[name]))
        options[name] = _read(text, kind, f"{label}.{name}")
    for name in known:
        if name not in options:
            raise BenchError(
                f"{label} needs its option '{name}'", f"give it with -D {label}.{name}=VALUE"
            )
    return options


def _annotations(decoder: type) -> dict[str, Any]:
    """Return the constructor's annotations as types, without those that cannot be resolved."""
    function = decoder.__init__ if inspect.isclass(decoder) else decoder
    scope = getattr(function, "__globals__", {})
    kinds: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        alone = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            kinds |= typing.get_type_hints(alone, scope)
        except Exception:  # any expression; often a name that only a type checker imports
            continue
    return kinds


def _kind_of_default(option: inspect.Parameter) -> Any:
    """Return the type to read an option as whose annotation cannot be resolved.

    By its text, or by its default.
    """
    written = inspect.formatannotation(option.annotation).partition("|")[0].strip(" '\"")
    kinds: dict[str, type] = {kind.__name__: kind for kind in (bool, int, float, str)}
    default = type(option.default) if isinstance(option.default, bool | int | float) else str
    return kinds.get(written, default)


def _read(text: str, kind: Any, name: str) -> Any:
    """Read an option's text as a truth value, a number, one of several literals, or a text."""
    if typing.get_origin(kind) is Literal:
        return _one_of(text, typing.get_args(kind), name)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        choices = [choice for choice in typing.get_args(kind) if choice is not type(None)]
        if len(choices) < len(typing.get_args(kind)) and text.lower() == "none":
            return None
        if len(choices) == 1:
            return _read(text, choices[0], name)
        plain = [choice for choice in choices if choice in (bool, int, float)]
        kind = plain[0] if plain else str
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise BenchError(f"{name}={text} is neither true nor false", "write true or false")
        return text.lower() == "true"
    container = typing.get_origin(kind) or kind
    if container in CONTAINERS:
        raise BenchError(
            f"{name} is annotated as {inspect.formatannotation(kind)}, which no text gives",
            "annotate it as bool, int, float, Literal[...] or str, and split the text itself",
        )
    if kind not in (int, float):
        return text
    what = "an integer" if kind is int else "a number"
    try:
        value = kind(text)
    except ValueError as error:
        raise BenchError(f"{name}={text[:LONG]} is not {what}", f"give {name} a number") from error
    if abs(value) > LARGEST or not isfinite(value):
        raise BenchError(f"{name}={text[:LONG]} is out of range", f"give {name} a smaller number")
    return value


def _one_of(text: str, values: tuple[Any, ...], name: str) -> Any:
    for value in values:
        if str(value) == text:
            return value
    raise BenchError(f"{name}={text} is not allowed", near(text, map(str, values)))
