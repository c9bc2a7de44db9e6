"""The lines of a record as they stand in its file, whatever their kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fspad_bench.util.errors import BenchError
from fspad_bench.util.text import file_bytes, json_value

REPAIR = "a record is written by `fspad-bench run` and never edited: restore it, or move it away"


class LineError(ValueError):
    """A line that is no line of a record at all."""


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a record.

    A torn last line is skipped; any other unreadable line is a BenchError.
    """
    for number, raw in raw_lines(path):
        try:
            yield content_of(raw)
        except LineError as error:
            raise BenchError(f"{path}:{number}: {error}", REPAIR) from error


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a record, numbered, without a torn last one."""
    yield from enumerate(file_bytes(path).split(b"\n")[:-1], start=1)


def content_of(raw: bytes) -> dict[str, Any]:
    """Return what a line holds. Raises LineError for what is no line of a record."""
    try:
        line = json_value(raw)
    except ValueError as error:
        raise LineError(f"not a record line: {error}") from error
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        raise LineError("not a record line")
    return line
