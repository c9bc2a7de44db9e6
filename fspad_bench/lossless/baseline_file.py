"""Change figures in the text of a baseline: comments, order and layout stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from fspad_bench.util.errors import BenchError

if TYPE_CHECKING:
    from yaml import MappingNode, Node


class Edit(NamedTuple):
    """New text for a part of a file, from one character to another."""

    start: int
    end: int
    text: str


def edited(text: str, figures: Mapping[int, Mapping[str, str]]) -> str:
    """Return the text of a baseline with new figures: number of an expectation -> field -> figure.

    A field that an expectation lacks is written behind its `tokens_per_step`.
    """
    import yaml

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    promises = _value(root, "promises")
    assert promises is not None
    edits = {
        edit
        for number, fields in figures.items()
        for edit in _edits(promises.value[number], fields)
    }
    for edit in sorted(edits, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def _edits(entry: MappingNode, fields: Mapping[str, str]) -> Iterator[Edit]:
    for name, figure in fields.items():
        value = _value(entry, name)
        if value is not None:
            yield _replaced(value, figure)
            continue
        last = _value(entry, "tokens_per_step")
        if last is None:
            raise BenchError(
                f"line {entry.start_mark.line + 1}: tokens_per_step stands elsewhere",
                "write it in the entry itself, and not by a merge (<<)",
            )
        indent = "\n" + " " * entry.start_mark.column
        between = ", " if entry.flow_style else indent
        yield Edit(last.end_mark.index, last.end_mark.index, f"{between}{name}: {figure}")


def _replaced(value: Node, figure: str) -> Edit:
    start = value.start_mark.index
    if getattr(value, "flow_style", True):
        return Edit(start, value.end_mark.index, figure)
    # a list of one item a line: it may begin in its key's column, where text may not
    return Edit(start, value.value[-1].end_mark.index, f"  {figure}")


def _value(node: Node, name: str) -> Node | None:
    """Return the value of a mapping's field."""
    return next((value for key, value in node.value if key.value == name), None)
