"""Read text, JSON, JSON lines and YAML: the one door for what users and earlier runs wrote.

- Text is UTF-8, with or without a byte order mark at the start of the file.
- JSON can spell half of a surrogate pair (`"\\ud83d"`), which no text holds and no tokenizer
  takes: it is refused.
- Every error is a BenchError that names the file and the line.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fspad_bench.util.errors import BenchError
from fspad_bench.util.strangers import message_of

ONE_A_LINE = "write one JSON object a line"
SAVE_AS_UTF8 = "save the file as UTF-8"
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
SURROGATE = re.compile("[\ud800-\udfff]")
ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def is_text(value: object) -> bool:
    """Whether a value is a text that can be written as UTF-8."""
    return isinstance(value, str) and not SURROGATE.search(value)


def file_bytes(path: Path) -> bytes:
    """Return a file's content without a byte order mark.

    Raises BenchError where it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BenchError(
            f"cannot read {path}: {error.strerror or error}", "see its name and its permissions"
        ) from error
    if content.startswith(UTF16):
        raise BenchError(f"{path}:1: not UTF-8, but UTF-16", SAVE_AS_UTF8)
    return content.removeprefix(codecs.BOM_UTF8)


def text_file(path: Path) -> str:
    """Return a file's text. Raises BenchError where it cannot be read or is not UTF-8."""
    content = file_bytes(path)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BenchError(f"{path}:{line}: {_not_utf8(error)}", SAVE_AS_UTF8) from error


def json_file(path: Path, hint: str) -> Any:
    """Return the value of a JSON file. Raises BenchError where it is none."""
    try:
        return json_value(file_bytes(path))
    except ValueError as error:
        raise BenchError(f"{path}: {error}", hint) from error


def json_lines(path: Path, hint: str = ONE_A_LINE) -> Iterator[tuple[str, Any]]:
    """Yield (file:line, value) of every line that is not blank.

    Raises BenchError for a line that is not JSON.
    """
    for number, line in enumerate(file_bytes(path).split(b"\n"), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            value = json_value(line)
        except ValueError as error:
            raise BenchError(f"{where}: {error}", hint) from error
        yield where, value


def json_value(raw: bytes, *, is_strict: bool = True) -> Any:
    """Return the value of JSON text in UTF-8. Raises ValueError where it is none.

    Unless `is_strict`, a text may hold half of a surrogate pair; the caller then refuses it where
    it stands.
    """
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not JSON: {_not_utf8(error)}") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if is_strict and ESCAPED_SURROGATE.search(raw):
        check_texts(value)
    return value


def json_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that a text is; None where it is none."""
    try:
        value = json_value(text.encode())
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def yaml_value(content: str) -> Any:
    """Return the value of YAML. Raises ValueError where it is none."""
    import yaml

    try:
        # the compiled reader takes a sixth of the time, where PyYAML has it
        value = yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        check_texts(value)
    except Exception as error:  # PyYAML raises whatever a value's tag stumbles over
        is_clear = isinstance(error, ValueError | RecursionError | yaml.YAMLError)
        reason = message_of(error) if is_clear else "a value does not fit its tag"
        raise ValueError(f"not YAML: {reason}") from error
    return value


def check_texts(value: Any, known: set[int] | None = None) -> None:
    """Raise ValueError where a text in a JSON value holds half of a surrogate pair.

    `known`: lists and dictionaries that were looked at, since YAML can name one many times.
    """
    known = set() if known is None else known
    if id(value) in known:
        return
    if isinstance(value, list | dict):
        known.add(id(value))
    match value:
        case str():
            if found := SURROGATE.search(value):
                raise ValueError(
                    f"half of a surrogate pair (\\u{ord(found[0]):04x}) in "
                    f"{value.encode('ascii', 'backslashreplace').decode()[:60]!r}: not text"
                )
        case list():
            for item in value:
                check_texts(item, known)
        case dict():
            for name, item in value.items():
                check_texts(name)
                check_texts(item, known)


def _not_utf8(error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return f"not UTF-8: byte 0x{byte:02x} at {error.start}"
