"""Whether the fields of a record's line are what they are declared to be."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any, Union, get_args, get_origin, get_type_hints

from fspad_bench.util.plain import LONGEST_STEP, whole


def check_fields(kind: type, content: Mapping[str, Any]) -> None:
    """Raise ValueError naming a field of a dataclass whose value is of another type.

    Missing and unknown fields are the constructor's to refuse.
    """
    hints = _hints(kind)
    for name, value in content.items():
        if name in hints and not fits(value, hints[name]):
            raise ValueError(f"'{name}' is {value!r:.60}")


def check_trees(
    steps: int,
    depths: Sequence[int] | None,
    ranks: Sequence[Sequence[int]] | None,
    refused: Sequence[int] | None,
) -> None:
    """Raise ValueError unless what is known of the steps' trees is a number or a list a step."""
    for known in (depths, ranks, refused):
        if known is not None and len(known) != steps:
            raise ValueError(f"{len(known)} trees in {steps} steps")
    for number in chain(depths or (), refused or (), *(ranks or ())):
        whole(number, "a tree", LONGEST_STEP)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value read from JSON is of a type: a whole number is a float too."""
    origin = get_origin(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, choice) for choice in get_args(kind))
    if origin is list:
        (item,) = get_args(kind)
        if not isinstance(value, list):
            return False
        if get_origin(item):
            return all(fits(part, item) for part in value)
        return set(map(type, value)) <= _types(item)
    if origin is dict:
        _, item = get_args(kind)
        return isinstance(value, dict) and all(fits(part, item) for part in value.values())
    return type(value) in _types(kind)


def _types(kind: type) -> set[type]:
    return {int, float} if kind is float else {kind}


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
