"""Render a tokenizer's chat template, the same on every day, and try it before it is used.

- Every conversation is rendered here. What a template refuses is a BenchError with its reason.
- Some templates print the date. Theirs is always `CLOCK`, LLaMA-3's own default: prompts that
  change overnight would be other prompts in the same row.
- A template that differs between renderings (`random`, `lipsum`) is refused for the same reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import cast

from transformers import PreTrainedTokenizerBase

from fspad_bench.util.errors import BenchError
from fspad_bench.util.strangers import contained, message_of

Message = dict[str, str]

MARK = "WORDS"  # stands for the user's words while the text around them is looked at
CLOCK = datetime(2024, 7, 26)
CODES = "aAbBcdDeFfgGhHIjmMpRSTuUVwWxXyYzZ%"  # of strftime
UNPADDED = "deHIjmMSUW"  # codes whose padding a `-` drops
RENDERINGS = 8  # a random choice of two would agree so often once in 128 templates


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, opened: bool) -> str:
    """Return a conversation as text; `opened`: the assistant's next answer begins at its end.

    Raises BenchError where the template refuses it.
    """
    try:
        with contained():
            template = tokenizer.get_chat_template()
            if "strftime_now" in template:
                template = _fixed_clock() + template
            text = tokenizer.apply_chat_template(
                list(messages), chat_template=template, add_generation_prompt=opened, tokenize=False
            )
    except Exception as error:  # a template is a program: it may raise anything
        raise BenchError(
            f"the chat template refuses a conversation: {_reason(error)}",
            "name a target whose template takes it, or other data",
        ) from error
    return cast(str, text)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a rendered text: the special tokens it needs are part of it.

    Raises BenchError for a text that the tokenizer does not take.
    """
    try:
        with contained():
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception as error:  # whatever its library raises, such as for half a surrogate pair
        raise BenchError(
            f"the tokenizer does not take a text: {_reason(error)}",
            "name a target whose tokenizer takes it, or other data",
        ) from error


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise BenchError unless a question can be asked by this template, and only in one way."""
    question = [{"role": "user", "content": MARK}]
    text = render(tokenizer, question, opened=True)
    ids = token_ids(tokenizer, text)
    if MARK not in text:
        raise BenchError("the chat template leaves the user's words out", "name an instruct model")
    if ids == token_ids(tokenizer, text.replace(MARK, "")):
        raise BenchError(
            "the tokenizer leaves the user's words out", "its files may be those of another model"
        )
    if any(render(tokenizer, question, opened=True) != text for _ in range(RENDERINGS)):
        raise BenchError(
            "the chat template renders one conversation in several ways",
            "take what is random out of it: prompts must be the same in every run",
        )


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of the template's text, or of its texts where there are several."""
    template = tokenizer.chat_template
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _reason(error: Exception) -> str:
    return message_of(error) or type(error).__name__


def _fixed_clock() -> str:
    """Return a macro that stands before a template and is its `strftime_now`.

    A template's variables cannot be functions, but a macro hides the function of the same name.
    """
    codes = [f"%-{code}" for code in UNPADDED] + [f"%{code}" for code in CODES]
    steps = "".join(f".replace({code!r}, {CLOCK.strftime(code)!r})" for code in codes)
    return "{% macro strftime_now(format) %}{{ format" + steps + " }}{% endmacro +%}"
