"""Prompts of a run: conversations through the target's chat template, and whether they fit its
context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from fspad_bench.benchmark.tasks import Card, Question, TaskData
from fspad_bench.engine.target import GENERATION, TransformersTarget
from fspad_bench.models.stop_strings import StopStrings
from fspad_bench.models.template import (
    Message,
    check_template,
    render,
    template_hash,
    token_ids,
)
from fspad_bench.util.errors import BenchError
from fspad_bench.util.terminal import note

__all__ = ["Message", "Prompts", "longest_conversation", "prompts_of", "stop_facts"]

TURN_TOKENS = 64  # an upper estimate of what a chat template writes around a turn


class Prompts:
    """The target's chat template. Raises BenchError where it has none, or one of no use."""

    def __init__(self, target: TransformersTarget, name: str) -> None:
        tokenizer = target.tokenizer
        if tokenizer is None or not tokenizer.chat_template:
            raise BenchError(
                f"the tokenizer of {name} has no chat template", "name an instruct model"
            )
        self.tokenizer = tokenizer
        check_template(tokenizer)

    def of(self, card: Card) -> Prompts:
        """Return the prompts of a task: these, or plain text."""
        return self if card.is_chat else PlainPrompts(self.tokenizer)

    def stop(self, card: Card) -> StopStrings | None:
        """Return the end of a task's answers, None where no string ends them."""
        return StopStrings(self.tokenizer, card.until) if card.until else None

    @property
    def template_sha256(self) -> str:
        return template_hash(self.tokenizer)

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt that asks for the assistant's next message.

        Raises BenchError where the template refuses the conversation.
        """
        return token_ids(self.tokenizer, render(self.tokenizer, messages, opened=True))

    def ask(self, text: str) -> list[int]:
        """Return the prompt of a conversation that begins with `text`."""
        return self.tokens([{"role": "user", "content": text}])

    def text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


class PlainPrompts(Prompts):
    """Prompts without a chat template: a text, with what the tokenizer itself puts before one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @property
    def template_sha256(self) -> str:
        return template_hash(self.tokenizer) if self.tokenizer.chat_template else ""

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """Return the last message alone."""
        text = messages[-1]["content"]
        bos = self.tokenizer.bos_token
        is_begun = bool(bos) and text.startswith(str(bos))
        return list(self.tokenizer(text, add_special_tokens=not is_begun)["input_ids"])


def prompts_of(target: TransformersTarget, name: str, cards: Iterable[Card]) -> Prompts:
    """Return the prompts of these tasks: a target without a chat template answers plain text."""
    if any(card.is_chat for card in cards) or target.tokenizer is None:
        return Prompts(target, name)
    return PlainPrompts(target.tokenizer)


def stop_facts(target: TransformersTarget) -> dict[str, Any]:
    """Return the ids that end an answer and where they come from, for the record.

    A note says so where these are not all that the target's files name.
    """
    ids = sorted(target.stop_ids)
    others = sorted(target.tokenizer_stop_ids - target.stop_ids)
    if target.stop_source != GENERATION or others:
        used = f"the ids {ids} of its {target.stop_source}" if ids else "no id at all"
        left = f", not with {others} of its tokenizer" if others else ""
        note(f"note: answers of {target.name} end with {used}{left}")
    return {"ids": ids, "from": target.stop_source}


def longest_conversation(
    data: Iterable[TaskData], prompts: Prompts, answer: Callable[[Card], int], context: int
) -> int:
    """Return the most tokens a conversation may take, answers of full length included, within the
    context.

    `answer` gives the length of a task's answers. Raises BenchError where no prompt fits the
    context; a prompt that alone does not fit is the error of that sample.
    """
    shortest = []
    whole = []
    for task in data:
        room = answer(task.card)
        own = prompts.of(task.card)
        for question in task.questions:
            shortest.append(len(own.ask(question.turns[0])) + room)
            whole.append(_whole_conversation(question, own, room))
    if min(shortest) > context:
        raise BenchError(
            f"no prompt fits: with its new tokens the shortest takes {min(shortest)}, "
            f"the context of the target is {context}",
            "lower --max-new-tokens, or name another task or target",
        )
    return min(max(whole), context)


def _whole_conversation(question: Question, prompts: Prompts, room: int) -> int:
    turns = len(question.turns)
    return len(prompts.ask("\n".join(question.turns))) + turns * (room + TURN_TOKENS)
