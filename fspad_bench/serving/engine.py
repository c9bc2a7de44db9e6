"""What is asked of a served engine, and what it answers: the same for every server.

- An `Ask` is one request, a `Reply` its answer; an `Engine` turns the first into the second.
- Prompts and answers are token ids wherever a server speaks them. A server that gives text alone
  answers with `tokens_known` False and no tokens.
- What a server does not say is None, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any, NamedTuple, Protocol

from fspad_bench.serving.metrics import Drafts
from fspad_bench.util.errors import BenchError
from fspad_bench.util.text import json_object

DEPTH = re.compile(r"\bN\b")


class Range(NamedTuple):
    """The values of a setting: `low` to `high`, without `low` itself where it `is_open`."""

    low: float
    high: float = inf
    is_whole: bool = False
    is_open: bool = False

    def __contains__(self, value: object) -> bool:
        kinds = int if self.is_whole else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not isfinite(value):
            return False
        return self.low <= value <= self.high and not (self.is_open and value == self.low)

    def __str__(self) -> str:
        kind = "a whole number" if self.is_whole else "a finite number"
        low = "" if self.low == -inf else f" {'above' if self.is_open else 'from'} {self.low:g}"
        return f"{kind}{low}" + ("" if self.high == inf else f" to {self.high:g}")


RANGES = {
    "max_tokens": Range(1, is_whole=True),
    "temperature": Range(0),
    "top_p": Range(0, 1, is_open=True),
    "top_k": Range(0, is_whole=True),
    "min_p": Range(0, 1),
    "presence": Range(-inf),
    "frequency": Range(-inf),
    "repetition": Range(0, is_open=True),
    "logprobs": Range(0, is_whole=True),
}


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How tokens are chosen.

    `top_k` 0, `top_p` 1 and `min_p` 0 cut nothing; `presence` 0, `frequency` 0 and `repetition` 1
    penalise nothing. Raises BenchError for a value outside of `RANGES`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            if hasattr(self, name) and getattr(self, name) not in allowed:
                raise BenchError(f"{name}={getattr(self, name)} is out of range", f"give {allowed}")

    def among(self, names: Sequence[str]) -> list[str]:
        """Return those of these settings that are not neutral here."""
        neutral = SamplingSettings()
        return [name for name in names if getattr(self, name) != getattr(neutral, name)]


@dataclass(frozen=True)
class Ask(SamplingSettings):
    """One request, with the settings of its sampling.

    `logprobs` alternatives are asked for per position. `extra` is merged into the body of the
    request as it is: it switches speculation, its depth, and whatever a server knows.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    seed: int | None = None
    logprobs: int = 0
    extra: Mapping[str, object] = field(default_factory=dict)


def depth_body(template: str, depth: int) -> dict[str, object]:
    """Return what a request of this draft depth says: the template's JSON with N replaced.

    Raises BenchError unless that is an object in which N, as a word of its own, is a value.
    """
    body, other = (json_object(DEPTH.sub(str(n), template)) for n in (depth, depth + 1))
    if body is None or body == other:
        raise BenchError(
            f"'{template:.60}' is not a JSON object in which N is a value",
            """such as --depth-extra '{"num_speculative_tokens": N}'""",
        )
    return body


@dataclass(frozen=True)
class Reply:
    """One answer.

    - `finish` is the server's word: `stop`, `length` or another.
    - `chosen` are the log-probabilities of the returned tokens, `top` the alternatives at each of
      their positions, by token id.
    - `first_token_s` and `seconds` count from the moment the request is sent; they are equal where
      the whole answer came at once, so that the first token was not seen apart.
    - `drafted` and `accepted` count draft tokens, as the server says.
    """

    tokens: tuple[int, ...]
    text: str
    finish: str
    chosen: tuple[float, ...] | None = None
    top: tuple[Mapping[int, float], ...] | None = None
    first_token_s: float = 0.0
    seconds: float = 0.0
    drafted: int | None = None
    accepted: int | None = None
    tokens_known: bool = True


class Limited(Protocol):
    """An engine whose API lacks some settings of sampling."""

    @property
    def name(self) -> str: ...
    @property
    def unsupported(self) -> Sequence[str]: ...


def check_supported(engine: Limited, settings: SamplingSettings) -> None:
    """Raise BenchError for settings that an engine does not support."""
    refused = settings.among(engine.unsupported)
    if refused:
        raise BenchError(
            f"{engine.name} does not support {' and '.join(refused)}: its API has no such field",
            "leave that out, or name another --dialect",
        )


class Engine(Protocol):
    """A served engine. A server that fails or cannot be reached is a BenchError."""

    @property
    def name(self) -> str: ...

    def ask(self, ask: Ask) -> Reply:
        """Send one request and wait for its answer."""

    def ask_all(self, asks: Sequence[Ask], concurrency: int) -> list[Reply]:
        """Send many requests, at most `concurrency` at once; the replies are in the asks' order."""

    def drafts(self) -> Drafts | None:
        """Return the draft tokens that the server has counted so far, over all requests; None where
        it counts none.
        """

    def facts(self) -> dict[str, Any]:
        """Return what is known of the server.

        `model`; `engine`, its kind, and `version`, where it says them; `token_ids`, `logprobs` and
        `seeds`: whether it can give them.
        """
