"""Render chat templates as token ids, and locate the answers in them.

- A span `(start, end)` of an answer includes the id that ends it, such as `<|im_end|>`.
- No special tokens are added to a rendered template: those it needs are part of its text.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from fspad_bench.errors import BenchError

MARK = "WORDS"  # stands for the user's words while the text before them is rendered
Message = dict[str, str]
Span = tuple[int, int]


class Rendered(NamedTuple):
    """Token ids, and the spans of the assistant's answers in them."""

    tokens: list[int]
    answers: list[Span]


class Chat:
    """The chat template of a tokenizer.

    Raises BenchError if there is none, or if it ignores `add_generation_prompt`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        if not tokenizer.chat_template:
            raise BenchError(
                "the target's tokenizer has no chat template", "choose an instruct model"
            )
        hello = [user("Hello")]
        if self._text(hello, opened=True) == self._text(hello, opened=False):
            raise BenchError(
                "the chat template has no generation prompt: "
                "it would not open the assistant's answer",
                "make the template honour add_generation_prompt",
            )

    def prompt(self, messages: list[Message]) -> Rendered:
        """Render what the target reads before it answers the last of `messages`, a user's."""
        return self._rendered(messages, opened=True)

    def whole(self, messages: list[Message]) -> Rendered:
        """Render a conversation that ends with the assistant's answer."""
        return self._rendered(messages, opened=False)

    def user_prefix(self, messages: list[Message]) -> list[int]:
        """Return the ids before the words of the user's next message.

        Raises BenchError if the template omits those words.
        """
        text = self._text([*messages, user(MARK)], opened=False)
        prefix, mark, _ = text.rpartition(MARK)
        if not mark:
            raise BenchError(
                "the chat template leaves the user's words out", "train on a file of conversations"
            )
        return self._ids(prefix)

    def _rendered(self, messages: list[Message], *, opened: bool) -> Rendered:
        tokens = self._ids(self._text(messages, opened=opened))
        answers = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                start = self._length_of(messages[:number], tokens, opened=True)
                end = self._length_of(messages[: number + 1], tokens, opened=False)
                stop = next((i for i in range(start, end) if tokens[i] in self.stop_ids), end - 1)
                answers.append((start, stop + 1))
        return Rendered(tokens, answers)

    def _length_of(self, earlier: list[Message], tokens: list[int], *, opened: bool) -> int:
        """Return how many of `tokens` the earlier messages are.

        Raises BenchError if `tokens` do not begin with them.
        """
        prefix = self._ids(self._text(earlier, opened=opened))
        if tokens[: len(prefix)] != prefix:
            raise BenchError(
                "the chat template writes earlier turns differently once later ones follow",
                "use conversations of one turn: answers in longer ones cannot be located",
            )
        return len(prefix)

    def _text(self, messages: list[Message], *, opened: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=opened, tokenize=False
        )
        return cast(str, text)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of the vocabulary, which decides the ids of a text."""
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
