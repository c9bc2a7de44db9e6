"""Conversations from elsewhere: ShareGPT, JSONL with messages, hub data sets.

- A row that is not a conversation (no messages, an empty answer) is left out and named by file and
  line. A source without any conversation is an error.
- The system's message is the first of the messages, or the row's field `system`; an empty one is
  none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError

from fspad_bench.models.chat import Chat, Message
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import user_path
from fspad_bench.util.text import file_bytes, is_text, json_value

HUB = "hub:"
SYSTEM = "system"
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
        rows, digest = _from_file(user_path(source))
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
    script = _with_system(row, [_message(message) for message in row[column]])
    while script and script[-1]["role"] != "assistant":
        script.pop()
    roles = [message["role"] for message in script if message["role"] != SYSTEM]
    if not roles:
        raise ValueError("no assistant message")
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError("user and assistant do not take turns")
    for message in script:
        if not message["content"].strip():
            raise ValueError(f"an empty message of the {message['role']}")
    return script


def _with_system(row: dict[str, Any], script: list[Message]) -> list[Message]:
    """Return the messages without empty ones of the system, after the row's own field `system`."""
    script = [m for m in script if m["role"] != SYSTEM or m["content"]]
    given = row.get(SYSTEM)
    if given is None or given == "":
        return script
    first = _message({"role": SYSTEM, "content": given})
    if not first["content"] or script[:1] == [first]:
        return script
    if any(message["role"] == SYSTEM for message in script):
        raise ValueError("two messages of the system: the row's own, and one among the messages")
    return [first, *script]


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
    if not is_text(content):
        raise ValueError(f"a message of the {role} with half a surrogate pair")
    # stripped, because many chat templates strip contents, some of them silently
    return {"role": ROLES[role], "content": content.strip()}


def _from_file(path: Path) -> tuple[LocatedRows, str]:
    if not path.is_file():
        raise BenchError(
            f"no such data: {path}", "give a ShareGPT JSON file, JSONL, or hub:OWNER/NAME@COMMIT"
        )
    raw = file_bytes(path)
    is_list = raw.lstrip()[:1] == b"["
    rows = _from_list(path, raw) if is_list else _from_lines(path, raw)
    return rows, hashlib.sha256(path.read_bytes()).hexdigest()


def _from_list(path: Path, raw: bytes) -> LocatedRows:
    try:
        rows = json_value(raw, is_strict=False)  # its rows are checked one by one
    except ValueError as error:
        raise BenchError(f"{path}: {error}", "give a list of conversations, or JSONL") from error
    return [(f"{path}[{index}]", row) for index, row in enumerate(rows)]


def _from_lines(path: Path, raw: bytes) -> LocatedRows:
    rows = []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((f"{path}:{number}", json_value(line, is_strict=False)))
        except ValueError as error:
            raise BenchError(
                f"{path}:{number}: {error}", "write one conversation a line"
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
    try:
        import datasets

        table = datasets.load_dataset(name, split=split or "train", revision=revision)
        columns = list(table.column_names)
        has_talks = bool(set(COLUMNS) & set(columns))
        # of these columns alone, because reading a row decodes its images and sounds
        texts = table.select_columns([c for c in columns if c in (*COLUMNS, SYSTEM)])
        rows = list(texts) if has_talks else []
    except Exception as error:  # datasets raises whatever its transport raised
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BenchError(
            f"cannot load {source} from the hub: {reason}", "without a network give a file"
        ) from error
    if not has_talks:
        raise BenchError(
            f"{source} has no column of messages, but {', '.join(columns)}",
            f"such a column is called {', '.join(COLUMNS)}",
        )
    digest = hashlib.sha256(source.encode()).hexdigest()
    return [(f"{name}[{index}]", row) for index, row in enumerate(rows)], digest
