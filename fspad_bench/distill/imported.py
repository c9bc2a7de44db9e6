"""Conversations that others wrote: ShareGPT files, JSONL with messages, hub data sets with a messages column.

What is no conversation (no messages, an empty answer) is left out and named by file and line; what is no data at all
is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError

from fspad_bench.errors import BenchError
from fspad_bench.models.chat import Chat, Message

HUB = "hub:"
COLUMNS = ("messages", "conversations", "conversation")
SPEAKERS = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant",
    "system": "system",
}  # fmt: skip


class Given(NamedTuple):
    """Usable conversations, what was wrong with the others (`where: why`), and a hash of the source."""

    scripts: list[list[Message]]
    left_out: list[str]
    digest: str


def read_given(source: str) -> Given:
    """`hub:OWNER/NAME[:SPLIT]@REVISION`, a ShareGPT JSON list, or JSONL of either shape."""
    rows, digest = (
        _from_hub(source) if source.startswith(HUB) else _from_file(Path(source).expanduser())
    )
    scripts = []
    left_out = []
    for where, row in rows:
        try:
            scripts.append(_script(row))
        except ValueError as error:
            left_out.append(f"{where}: {error}")
    if not rows:
        raise BenchError(f"{source} is empty", "messages with a role and a content")
    if not scripts:
        raise BenchError(
            f"{source} holds no usable conversation; {left_out[0]}",
            "messages with a role and a content",
        )
    return Given(scripts, left_out, digest)


def rendered(
    chat: Chat, scripts: Iterable[list[Message]], left_out: list[str]
) -> Iterator[dict[str, Any]]:
    """The conversations as they stand, as rows of a data set; what the template refuses is noted in `left_out`."""
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
    """A row's messages, from the user's first to the assistant's last. Raises ValueError saying why it has none."""
    column = next((name for name in COLUMNS if isinstance(row, dict) and row.get(name)), None)
    if column is None:
        raise ValueError("no messages")
    if not isinstance(row[column], list):
        raise ValueError(f"{column} is no list")
    script = [_message(message) for message in row[column]]
    while script and script[-1]["role"] != "assistant":
        script.pop()
    spoken = [message["role"] for message in script if message["role"] != "system"]
    if not spoken:
        raise ValueError("nobody answers")
    if spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise ValueError("user and assistant do not take turns")
    if empty := [message["role"] for message in script if not message["content"].strip()]:
        raise ValueError(f"an empty message of the {empty[0]}")
    return script


def _message(message: Any) -> Message:
    """Either `role` and `content`, or ShareGPT's `from` and `value`."""
    if not isinstance(message, dict):
        raise ValueError(f"a message that is no object: {str(message)[:40]!r}")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if not isinstance(role, str) or role not in SPEAKERS:
        raise ValueError(f"an unknown speaker {role!r}")
    if not isinstance(content, str):
        raise ValueError(f"a message of the {role} without text")
    if any("\ud800" <= letter <= "\udfff" for letter in content):
        raise ValueError(f"a message of the {role} that is no text: half a surrogate pair")
    return {
        "role": SPEAKERS[role],
        "content": content.strip(),
    }  # as templates write them, some of them silently


def _from_file(path: Path) -> tuple[Sequence[tuple[str, Any]], str]:
    if not path.is_file():
        raise BenchError(f"no such data: {path}", "a ShareGPT JSON file, JSONL, or hub:OWNER/NAME")
    raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if raw.lstrip()[:1] == b"[":
        try:
            return [(f"{path}[{i}]", row) for i, row in enumerate(json.loads(raw))], digest
        except ValueError as error:
            raise BenchError(
                f"{path}: not JSON: {error}", "a list of conversations, or JSONL"
            ) from error
    rows = []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            try:
                rows.append((f"{path}:{number}", json.loads(line)))
            except ValueError as error:
                raise BenchError(
                    f"{path}:{number}: not JSON: {error}", "one conversation a line"
                ) from error
    if not rows:
        raise BenchError(f"{path} is empty", "one conversation a line")
    return rows, digest


def _from_hub(source: str) -> tuple[Sequence[tuple[str, Any]], str]:
    name, at, revision = source.removeprefix(HUB).partition("@")
    name, _, split = name.partition(":")
    if not at or not revision:
        raise BenchError(
            f"{source} names no revision",
            "hub:OWNER/NAME[:SPLIT]@COMMIT, so that the data stay the same",
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
            "such as `messages`",
        )
    digest = hashlib.sha256(source.encode()).hexdigest()
    return [(f"{name}[{i}]", row) for i, row in enumerate(rows)], digest
