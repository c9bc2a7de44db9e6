"""Render chat templates as token ids, and locate the answers in them.

- A span `(start, end)` of an answer includes the id that ends it, such as `<|im_end|>`.
- No special tokens are added to a rendered template: those it needs are part of its text.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from fspad_bench.models.template import MARK, Message, check_template, render, token_ids
from fspad_bench.util.errors import BenchError

Span = tuple[int, int]

__all__ = [
    "Chat",
    "Message",
    "Rendered",
    "Span",
    "assistant",
    "tokenizer_hash",
    "user",
    "vocabulary_hash",
]


class Rendered(NamedTuple):
    """Token ids, and the spans of the assistant's answers in them."""

    tokens: list[int]
    answers: list[Span]


class Chat:
    """The chat template of a tokenizer.

    Raises BenchError if there is none, or if no question can be asked by it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        if not tokenizer.chat_template:
            raise BenchError(
                "the target's tokenizer has no chat template", "choose an instruct model"
            )
        check_template(tokenizer)

    def prompt(self, messages: list[Message]) -> Rendered:
        """Render what the target reads before it answers the last of `messages`, a user's."""
        return self._rendered(messages, opened=True)

    def whole(self, messages: list[Message]) -> Rendered:
        """Render a conversation that ends with the assistant's answer.

        Raises BenchError where no answer can be located in it.
        """
        rendered = self._rendered(messages, opened=False)
        if not rendered.answers:
            raise BenchError(
                "the chat template writes answers otherwise than it asks for them",
                "let the target answer these conversations: --regenerate",
            )
        return rendered

    def user_prefix(self, messages: list[Message]) -> list[int]:
        """Return the ids before the words of the user's next message."""
        text = self._text([*messages, user(MARK)], opened=False)
        prefix, mark, _ = text.rpartition(MARK)
        if not mark:
            raise BenchError(
                "the chat template leaves the user's words out", "train on a file of conversations"
            )
        return self._ids(prefix)

    def _rendered(self, messages: list[Message], *, opened: bool) -> Rendered:
        """Return a conversation with the answers that can be located.

        Some templates write an answer otherwise once later turns follow, such as without its
        reasoning: then it is text that the target reads, and no answer of its.
        """
        tokens = self._ids(self._text(messages, opened=opened))
        answers = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                span = self._answer(messages, number, tokens)
                if span is not None:
                    answers.append(span)
        return Rendered(tokens, answers)

    def _answer(self, messages: list[Message], number: int, tokens: list[int]) -> Span | None:
        """Return the span of an answer in `tokens`, None where it cannot be located."""
        start = self._length_of(messages[:number], tokens, opened=True)
        if start is None:
            return None
        end = self._length_of(messages[: number + 1], tokens, opened=False)
        last = len(tokens) if end is None else end
        stop = next((i for i in range(start, last) if tokens[i] in self.stop_ids), None)
        if end is not None:
            return start, end if stop is None else stop + 1
        # the template closes it otherwise here: it counts if it is the very answer up to its end
        if stop is None or self._words(tokens[start:stop]) != messages[number]["content"].strip():
            return None
        return start, stop + 1

    def _length_of(self, earlier: list[Message], tokens: list[int], *, opened: bool) -> int | None:
        """Return how many of `tokens` the earlier messages are, None if these do not begin so."""
        prefix = self._ids(self._text(earlier, opened=opened)) if earlier else []
        return len(prefix) if tokens[: len(prefix)] == prefix else None

    def _words(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens)).strip()

    def _text(self, messages: list[Message], *, opened: bool) -> str:
        return render(self.tokenizer, messages, opened=opened)

    def _ids(self, text: str) -> list[int]:
        return token_ids(self.tokenizer, text)


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of the vocabulary, which decides what a token id stands for."""
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of all that decides the ids of a text: vocabulary, merges, normaliser."""
    total = hashlib.sha256(vocabulary_hash(tokenizer).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        total.update(backend.to_str().encode())
    elif hasattr(tokenizer, "sp_model"):
        total.update(tokenizer.sp_model.serialized_model_proto())
    return total.hexdigest()


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
