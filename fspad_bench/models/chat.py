"""Chat templates as token ids: a prompt with its earlier answers, and the place where a user's words begin."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from fspad_bench.errors import BenchError

MARK = "WORDS"
Message = dict[str, str]
Span = tuple[int, int]


class Rendered(NamedTuple):
    """Token ids, and where in them the assistant's answers stand, each with the id that ends it."""

    tokens: list[int]
    answers: list[Span]


class Chat:
    """A tokenizer's chat template. Raises BenchError where there is none, or it opens no answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        if not tokenizer.chat_template:
            raise BenchError(
                "the target's tokenizer has no chat template", "take an instruct model"
            )
        hello = [user("Hello")]
        if self._text(hello, opened=True) == self._text(hello, opened=False):
            raise BenchError(
                "the chat template has no generation prompt: it would not open the assistant's answer",
                "it must heed add_generation_prompt",
            )

    def prompt(self, messages: list[Message]) -> Rendered:
        """What the target reads before it answers `messages`, the last of which is the user's."""
        return self._rendered(messages, opened=True)

    def whole(self, messages: list[Message]) -> Rendered:
        """A conversation that ends with the assistant's answer."""
        return self._rendered(messages, opened=False)

    def user_prefix(self, messages: list[Message]) -> list[int]:
        """What stands before the words of the user's next message. Raises BenchError where they would be left out."""
        before, found, _ = self._text([*messages, user(MARK)], opened=False).rpartition(MARK)
        if not found:
            raise BenchError(
                "the chat template leaves the user's words out", "train on a file of conversations"
            )
        return self._ids(before)

    def _rendered(self, messages: list[Message], *, opened: bool) -> Rendered:
        tokens = self._ids(self._text(messages, opened=opened))
        answers = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                start = self._meeting(tokens, messages[:number], opened=True)
                end = self._meeting(tokens, messages[: number + 1], opened=False)
                stop = next((i for i in range(start, end) if tokens[i] in self.stop_ids), end - 1)
                answers.append((start, stop + 1))
        return Rendered(tokens, answers)

    def _meeting(self, tokens: list[int], earlier: list[Message], *, opened: bool) -> int:
        """Where the tokens of `earlier` end in those of the whole. Raises BenchError where they do not begin it."""
        head = self._ids(self._text(earlier, opened=opened))
        if tokens[: len(head)] != head:
            raise BenchError(
                "the chat template writes earlier turns differently once later ones follow",
                "where its answers stand cannot be told; use conversations of one turn",
            )
        return len(head)

    def _text(self, messages: list[Message], *, opened: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=opened, tokenize=False
        )

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides which ids a text becomes."""
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
