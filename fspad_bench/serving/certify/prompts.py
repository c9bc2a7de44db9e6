"""The prompts that both servers are asked: a file of token ids or texts, or those here.

Texts need the tokenizer of the served model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from fspad_bench.util.errors import BenchError
from fspad_bench.util.text import json_lines

TEXTS = (
    "Q: What is the capital of France? Observation in one word.\nA:",
    "Q: Name a colour and a fruit of that colour.\nA:",
    "Count from one to twenty in words: one, two, three, four,",
    "Once upon a time, in a village by the sea, there lived",
    "def fibonacci(n):\n    ",
    "Translate to English: Der Hund schläft unter dem Tisch.\nEnglish:",
)
"""Short answers and long ones, sure texts and open ones."""
HINT = 'one object a line: {"tokens": [1, 2, 3]}, or {"text": "..."} with --tokenizer'


class Tokenizer(Protocol):
    """A tokenizer: it turns a text into token ids."""

    def encode(self, text: str) -> list[int]: ...


Prompt = tuple[int, ...]


def own_prompts(tokenizer: Tokenizer) -> tuple[Prompt, ...]:
    """Return the prompts that come with the package."""
    return tuple(tuple(tokenizer.encode(text)) for text in TEXTS)


def read_prompts(path: Path, tokenizer: Tokenizer | None) -> tuple[Prompt, ...]:
    """Return the prompts of a file of JSON lines."""
    prompts = tuple(_prompt(where, value, tokenizer) for where, value in json_lines(path))
    if not prompts:
        raise BenchError(f"{path} holds no prompts", HINT)
    return prompts


def _prompt(where: str, value: Any, tokenizer: Tokenizer | None) -> Prompt:
    tokens = value.get("tokens") if isinstance(value, dict) else None
    text = value.get("text") if isinstance(value, dict) else None
    if isinstance(tokens, Sequence) and tokens and all(type(t) is int and t >= 0 for t in tokens):
        return tuple(tokens)
    if not isinstance(text, str) or not text:
        raise BenchError(f"{where}: there are neither token ids nor a text", HINT)
    if tokenizer is None:
        raise BenchError(f"{where} is a text", "give the served model's --tokenizer")
    return tuple(tokenizer.encode(text))
