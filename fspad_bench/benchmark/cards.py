"""Cards: the definition of a task, read from a YAML file that may come from a stranger."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from reprlib import repr  # short, however often YAML names a list
from typing import Any

from fspad_bench.util.errors import BenchError
from fspad_bench.util.text import text_file, yaml_value

EXAMPLE = "see tasks/gsm8k.yaml for a complete card"


@dataclass(frozen=True)
class Card:
    """The definition of a task.

    `doc_to_text` holds one template a turn; `doc_to_target`, if any, is the expression of the
    accepted answers. `bundled` is the file of the samples that ship, None where none do.
    `placeholder` is a text that stands in the data where its authors may not publish a question.
    `sha256` is the hash of the card's file.

    Of a task of another suite: `until`, the strings that end an answer; `source`, the one source of
    its samples, empty where `--data` decides; `is_chat` False where its prompts are plain text.
    """

    task: str
    title: str
    doc_to_text: list[str]
    doc_to_target: str
    score: str
    max_new_tokens: int
    bundled: Path | None
    spec_bench: list[str]
    dataset_path: str
    dataset_name: str | None
    test_split: str
    revision: str
    license: str
    placeholder: str
    version: int
    sha256: str
    until: list[str] = field(default_factory=list)
    source: str = ""
    is_chat: bool = True


def read_card(path: Path) -> Card:
    """Return the card of a YAML file.

    Raises BenchError naming the key that is missing or has a value of the wrong kind.
    """
    content = text_file(path)
    try:
        card = yaml_value(content)
        if not isinstance(card, dict):
            raise ValueError("it holds no keys")
        return _card(card, path, hashlib.sha256(path.read_bytes()).hexdigest())
    except KeyError as error:
        raise BenchError(f"the card {path} lacks the key {error}", EXAMPLE) from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise BenchError(f"cannot read the card {path}: {reason}", EXAMPLE) from error


def _card(content: dict[str, Any], path: Path, sha256: str) -> Card:
    given = _Given(content)
    turns = given.texts("doc_to_text")
    if not turns or not all(turns):
        raise ValueError("'doc_to_text' holds no template")
    return Card(
        task=given.name("task"),
        title=given.text("title"),
        doc_to_text=turns,
        doc_to_target=given.text("doc_to_target", ""),
        score=given.text("score", ""),
        max_new_tokens=_count(content["max_new_tokens"], "max_new_tokens"),
        bundled=path.parent / given.name("bundled") if "bundled" in content else None,
        spec_bench=given.texts("spec_bench", []),
        dataset_path=given.text("dataset_path", ""),
        dataset_name=given.text("dataset_name", "") or None,
        test_split=given.text("test_split", ""),
        revision=given.text("revision", ""),
        license=given.text("license"),
        placeholder=given.text("placeholder", ""),
        version=_version(content["metadata"]),
        sha256=sha256,
    )


class _Given:
    """The keys of a card, each read as what it must be.

    Raises KeyError for one that is missing, ValueError for a value of another kind.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def text(self, key: str, default: str | None = None) -> str:
        value = self.content[key] if default is None else self.content.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise ValueError(f"'{key}' is a text, not {repr(value):.60}")
        return value

    def name(self, key: str) -> str:
        value = self.text(key)
        if not value.strip() or not value.isprintable():
            raise ValueError(f"'{key}' is no name: {repr(value):.60}")
        return value

    def texts(self, key: str, default: list[str] | None = None) -> list[str]:
        value = self.content[key] if default is None else self.content.get(key, default)
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
            raise ValueError(f"'{key}' is a list of texts, not {repr(value):.60}")
        return values


def _count(value: Any, key: str) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"'{key}' is a whole number above 0, not {repr(value):.60}")
    return value


def _version(metadata: Any) -> int:
    if not isinstance(metadata, dict):
        raise ValueError(f"'metadata' is {{version: 1}}, not {repr(metadata):.60}")
    version = metadata["version"]
    if not isinstance(version, int | float) or not isfinite(version):
        raise ValueError(f"'metadata.version' is a number, not {repr(version):.60}")
    return int(version)
