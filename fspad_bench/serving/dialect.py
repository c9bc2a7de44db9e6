"""How one kind of server is asked, and how its answers are read.

`Completions` is the completions API with token ids as vLLM speaks it (docs.vllm.ai: "OpenAI-
compatible server", "Per-Request Acceptance Metrics"); other dialects differ in what they override.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fspad_bench.serving.engine import Ask
from fspad_bench.serving.metrics import VLLM

TextOf = Callable[[Sequence[int]], str]
TOKEN = "token_id:"


@dataclass
class Answer:
    """A reply as far as it has come.

    `first_ms`: when its first token was there, where the server tells it.
    """

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: str = ""
    chosen: list[float] = field(default_factory=list)
    top: list[dict[int, float]] = field(default_factory=list)
    drafted: int | None = None
    accepted: int | None = None
    first_ms: float | None = None

    @property
    def size(self) -> int:
        """Return how much has come, of tokens and text together."""
        return len(self.tokens) + len(self.text)

    def fault(self) -> str:
        """Return what is of another type than it must be, empty where nothing is."""
        named = {
            "token ids": all(map(_is_count, self.tokens)),
            "text": isinstance(self.text, str),
            "finish reason": isinstance(self.finish, str),
            "log-probabilities": all(map(_is_number, self.chosen)),
            "alternatives' token ids": all(_is_count(token) for row in self.top for token in row),
            "alternatives' log-probabilities": all(
                _is_number(value) for row in self.top for value in row.values()
            ),
            "times": self.first_ms is None or (_is_number(self.first_ms) and self.first_ms >= 0),
            "draft counts": all(
                count is None or _is_count(count) for count in (self.drafted, self.accepted)
            ),
        }
        wrong = [name for name, right in named.items() if not right]
        return f"its {' and '.join(wrong)} are none" if wrong else ""


class Dialect(ABC):
    """A kind of server: where it is asked, what it can give, and its fields."""

    name = ""
    path = "/v1/completions"
    version_path = "/version"
    version_field = "version"
    counters: tuple[str, str] | None = None
    """Prometheus' names of drafted and accepted tokens, for servers whose replies lack them."""
    token_ids = True
    logprobs = True
    seeds = True
    unsupported: tuple[str, ...] = ()
    """The settings of sampling that a request cannot say: the server's own defaults count."""

    def __init__(self, model: str, text_of: TextOf | None = None) -> None:
        self.model = model
        self.text_of = text_of

    @abstractmethod
    def body(self, ask: Ask) -> dict[str, Any]:
        """Return the body of a request, without `extra`."""

    @abstractmethod
    def read(self, event: Mapping[str, Any], answer: Answer) -> None:
        """Add an event to what has come of the reply."""


class Completions(Dialect):
    """vLLM, and what imitates it."""

    name = "vllm"
    counters: tuple[str, str] | None = VLLM

    def body(self, ask: Ask) -> dict[str, Any]:
        body = standard(ask, self.model) | {
            "prompt": list(ask.prompt),
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if ask.logprobs:
            body["logprobs"] = ask.logprobs
        return body

    def read(self, event: Mapping[str, Any], answer: Answer) -> None:
        for choice in event.get("choices") or ():
            answer.text += choice.get("text") or ""
            answer.finish = choice.get("finish_reason") or answer.finish
            logprobs = choice.get("logprobs") or {}
            ids = choice.get("token_ids")
            answer.tokens += _ids(logprobs.get("tokens") or ()) if ids is None else ids
            answer.chosen += logprobs.get("token_logprobs") or ()
            for row in logprobs.get("top_logprobs") or ():
                answer.top.append(_by_id(row or {}))
        counts = (event.get("metrics") or {}).get("speculative_decoding")
        if counts:
            answer.drafted = counts.get("num_draft_tokens")
            answer.accepted = counts.get("num_accepted_draft_tokens")


class TensorRT(Completions):
    """TensorRT-LLM's `trtllm-serve`: it gives token ids in place of text, and refuses fields that
    it does not know.
    """

    name = "tensorrt_llm"
    counters = None

    def body(self, ask: Ask) -> dict[str, Any]:
        body = super().body(ask) | {"detokenize": False}
        del body["return_token_ids"], body["return_tokens_as_token_ids"]
        return body


def standard(ask: Ask, model: str) -> dict[str, Any]:
    """Return the fields that all completions APIs of engines share, neutral values too.

    A server's own defaults, which may come from the model's files, would count otherwise.
    """
    body = {
        "model": model,
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "top_k": ask.top_k,
        "min_p": ask.min_p,
        "presence_penalty": ask.presence,
        "frequency_penalty": ask.frequency,
        "repetition_penalty": ask.repetition,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return body if ask.seed is None else body | {"seed": ask.seed}


def merged(body: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return a body with more fields; what is a mapping in both is merged itself."""
    result = dict(body)
    for name, value in extra.items():
        own = result.get(name)
        both = isinstance(own, Mapping) and isinstance(value, Mapping)
        result[name] = merged(dict(own), value) if own is not None and both else value
    return result


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: object) -> bool:
    """Return whether a value is a number of 64 bits or -inf; NaN is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == -math.inf or abs(value) <= sys.float_info.max


def _ids(tokens: Sequence[str]) -> list[int]:
    """Return the token ids of `token_id:7` and the like; none where they are written as text."""
    if not all(str(token).startswith(TOKEN) for token in tokens):
        return []
    return [int(token.removeprefix(TOKEN)) for token in tokens]


def _by_id(row: Mapping[str, float]) -> dict[int, float]:
    named = all(token.startswith(TOKEN) for token in row)
    return {int(token.removeprefix(TOKEN)): x for token, x in row.items()} if named else {}
