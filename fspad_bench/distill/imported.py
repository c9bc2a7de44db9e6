"""Conversations from elsewhere: ShareGPT, JSONL with messages, hub data sets.

A row that is not a conversation (no messages, an empty answer) is left out and named by file and
line. A source without any conversation is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError

from fspad_bench.errors import BenchError
from fspad_bench.models.chat import Chat, Message

HUB = "hub:"
COLUMNS = ("messages", "conversations", "conversation")
ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "system": "system",
}

LocatedRows = list[tuple[str, Any]]
"""(where the row stands, the row) for every row of a source."""


class Given(NamedTuple):
    """Usable conversations, reasons why others were left out, and the source's hash."""

    scripts: list[list[Message]]
    left_out: list[str]
    digest: str


def read_given(source: str) -> Given:
    """Read `hub:OWNER/NAME[:SPLIT]@REVISION`, a ShareGPT JSON list, or JSONL of either form."""
    if source.startswith(HUB):
        rows, digest = _from_hub(source)
    else:
        rows, digest = _from_file(Path(source).expanduser())
    hint = "give rows of messages with a role and a content"
    if not rows:
        raise BenchError(f"{source} is empty", hint)
    scripts = []
    left_out = []
    for where, row in rows:
        try:
            scripts.append(_script(row))
        except ValueError as error:
            left_out.append(f"{where}: {error}")
    if not scripts:
        raise BenchError(f"{source} holds no usable conversation; {left_out[0]}", hint)
    return Given(scripts, left_out, digest)


def rendered(
    chat: Chat, scripts: Iterable[list[Message]], left_out: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield the conversations as rows of a data set, with the answers they came with.

    Those that the chat template refuses are left out, with the reason appended to `left_out`.
    """
    for script in scripts:
        try:
            tokens, answers = chat.whole(script)
        except (BenchError, TemplateError) as error:
            left_out.append(f"{script[0]['content'][:40]!r}: {str(error).splitlines()[0]}")
            continue
        yield {
            "tokens": tokens,
            "answers": [list(span) for span in answers],
            "temperature": None,
            "kind": "given",
        }


def _script(row: Any) -> list[Message]:
    """Return a row's messages up to the assistant's last, or raise ValueError."""
    column = next((name for name in COLUMNS if isinstance(row, dict) and row.get(name)), None)
    if column is None:
        raise ValueError("no messages")
    if not isinstance(row[column], list):
        raise ValueError(f"{column} is not a list")
    script = [_message(message) for message in row[column]]
    while script and script[-1]["role"] != "assistant":
        script.pop()
    roles = [message["role"] for message in script if message["role"] != "system"]
    if not roles:
        raise ValueError("no assistant message")
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError("user and assistant do not take turns")
    for message in script:
        if not message["content"].strip():
            raise ValueError(f"an empty message of the {message['role']}")
    return script


def _message(message: Any) -> Message:
    """Read a message with `role` and `content`, or ShareGPT's `from` and `value`."""
    if not isinstance(message, dict):
        raise ValueError(f"a message that is not an object: {str(message)[:40]!r}")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"an unknown role {role!r}")
    if not isinstance(content, str):
        raise ValueError(f"a message of the {role} without text")
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise ValueError(f"a message of the {role} with half a surrogate pair")
    # stripped, because many chat templates strip contents, some of them silently
    return {"role": ROLES[role], "content": content.strip()}


def _from_file(path: Path) -> tuple[LocatedRows, str]:
    if not path.is_file():
        raise BenchError(
            f"no such data: {path}", "give a ShareGPT JSON file, JSONL, or hub:OWNER/NAME@COMMIT"
        )
    raw = path.read_bytes()
    is_list = raw.lstrip()[:1] == b"["
    rows = _from_list(path, raw) if is_list else _from_lines(path, raw)
    return rows, hashlib.sha256(raw).hexdigest()


def _from_list(path: Path, raw: bytes) -> LocatedRows:
    try:
        rows = json.loads(raw)
    except ValueError as error:
        raise BenchError(
            f"{path}: not JSON: {error}", "give a list of conversations, or JSONL"
        ) from error
    return [(f"{path}[{index}]", row) for index, row in enumerate(rows)]


def _from_lines(path: Path, raw: bytes) -> LocatedRows:
    rows = []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((f"{path}:{number}", json.loads(line)))
        except ValueError as error:
            raise BenchError(
                f"{path}:{number}: not JSON: {error}", "write one conversation a line"
            ) from error
    return rows


def _from_hub(source: str) -> tuple[LocatedRows, str]:
    name, _, revision = source.removeprefix(HUB).partition("@")
    name, _, split = name.partition(":")
    if not revision:
        raise BenchError(
            f"{source} names no revision",
            "write hub:OWNER/NAME[:SPLIT]@COMMIT, so that the data stay the same",
        )
    import datasets

    try:
        rows = datasets.load_dataset(name, split=split or "train", revision=revision)
    except Exception as error:  # datasets raises whatever its transport raised
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BenchError(
            f"cannot load {source} from the hub: {reason}", "without a network give a file"
        ) from error
    if not set(COLUMNS) & set(rows.column_names):
        raise BenchError(
            f"{source} has no column of messages, but {', '.join(rows.column_names)}",
            f"such a column is called {', '.join(COLUMNS)}",
        )
    digest = hashlib.sha256(source.encode()).hexdigest()
    return [(f"{name}[{index}]", row) for index, row in enumerate(rows)], digest
