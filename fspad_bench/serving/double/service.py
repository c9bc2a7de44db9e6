"""The double itself: requests of the completions API in, completions out, without HTTP.

- `Double.complete` is all that the server calls; `Direct` is an `Engine` over it for tests that
  need many samples and no network.
- Its dialect is vLLM's, with `return_token_ids` and `metrics.speculative_decoding`. Of its own are
  `"speculative": false` and `"num_speculative_tokens": k`, which switch speculation by request.
- Text is the token ids, each after a space.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any

from fspad_bench.core.sampling import Sampler
from fspad_bench.serving.double.generation import FAULTS, RULES, Generation, Models, Request
from fspad_bench.serving.double.model import VOCABULARY, Penalties, softmax
from fspad_bench.serving.engine import Ask, Reply
from fspad_bench.util.errors import BenchError, near

SEEDS = 2**63


@dataclass(frozen=True)
class Settings:
    """The settings of a double.

    `fault` is in force whenever a request speculates; `fault_depth` is the draft depth at which
    `short-rollback` shows. `depth` 0 serves without speculation. `noise` is how far the draft is
    from the target. A step takes `step_seconds` at least.
    """

    depth: int = 4
    rule: str = "rejection"
    fault: str | None = None
    fault_depth: int = 5
    salt: int = 0
    noise: float = 1.0
    end: float = -1.5
    step_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.fault is not None and self.fault not in FAULTS:
            raise BenchError(f"unknown fault '{self.fault}'", near(self.fault, FAULTS))
        if self.rule not in RULES:
            raise BenchError(f"unknown rule '{self.rule}'", near(self.rule, RULES))
        if self.depth < 0 or self.fault_depth < 1:
            raise BenchError("a draft depth is out of range", "0 (no speculation), or 1 and more")


@dataclass(frozen=True)
class Piece:
    """The part that one step adds to a completion; `finish` is empty until the last one."""

    tokens: list[int]
    chosen: list[float]
    top: list[dict[int, float]]
    drafted: int
    accepted: int
    finish: str

    @property
    def text(self) -> str:
        return "".join(f" {token}" for token in self.tokens)


@dataclass
class Double:
    """An engine of known distributions. `drafted` and `accepted` count over its whole life."""

    settings: Settings = field(default_factory=Settings)
    drafted: int = 0
    accepted: int = 0

    def __post_init__(self) -> None:
        self.models = Models.of(self.settings.salt, self.settings.noise, self.settings.end)
        self.answers: dict[tuple[object, ...], list[Piece]] = {}
        self.lock = Lock()

    def check(self, body: Mapping[str, Any]) -> None:
        """Raise BenchError where the body asks what is not."""
        request_of(body, self.settings.depth)

    def pieces(self, body: Mapping[str, Any]) -> Iterator[Piece]:
        """Yield a completion step by step."""
        request = request_of(body, self.settings.depth)
        alternatives = int(body.get("logprobs") or 0)
        if not (self.settings.fault == "cached-answers" and request.depth):
            yield from self._made(request, alternatives)
            return
        sampler = request.sampler
        cuts = (sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p)
        key = (request.prompt, request.max_tokens, *cuts, alternatives)
        if key not in self.answers:
            self.answers.setdefault(key, list(self._made(request, alternatives)))
        yield from self.answers[key]  # wrong: another seed would give another text

    def _made(self, request: Request, alternatives: int) -> Iterator[Piece]:
        settings = self.settings
        generation = Generation(
            self.models,
            request,
            rule=settings.rule,
            fault=settings.fault,
            fault_depth=settings.fault_depth,
        )
        text = list(request.prompt)
        for step in generation.steps():
            if settings.step_seconds:
                time.sleep(settings.step_seconds)
            rows = [self._logprobs([*text, *step.tokens[:i]]) for i in range(len(step.tokens))]
            text += step.tokens
            with self.lock:
                self.drafted += step.drafted
                self.accepted += step.accepted
            yield Piece(
                step.tokens,
                [row[token] for row, token in zip(rows, step.tokens, strict=True)],
                [_best(row, alternatives) for row in rows],
                step.drafted,
                step.accepted,
                generation.finish,
            )

    def _logprobs(self, text: Sequence[int]) -> list[float]:
        """Return the log-probabilities `[V]` after a text, before temperature and cuts."""
        return [math.log(p) for p in softmax(self.models.target.model.logits(text))]


def _best(row: Sequence[float], alternatives: int) -> dict[int, float]:
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    return {token: row[token] for token in order[:alternatives]}


def request_of(body: Mapping[str, Any], depth: int, vocabulary: int = VOCABULARY) -> Request:
    """Return the request that a body of the completions API asks for.

    Raises BenchError for a prompt of other tokens than the model has.
    """
    prompt = body.get("prompt") or []
    if isinstance(prompt, str):
        prompt = [int(word) if word.isdecimal() else -1 for word in prompt.split()]
    if not prompt or not all(isinstance(t, int) and 0 <= t < vocabulary for t in prompt):
        raise BenchError(f"the prompt is not of tokens below {vocabulary}", "give token ids")
    seed = body.get("seed")
    sampler = Sampler(
        temperature=float(_given(body, "temperature", 1.0)),
        top_k=max(0, int(_given(body, "top_k", 0))),
        top_p=float(_given(body, "top_p", 1.0)),
        min_p=float(_given(body, "min_p", 0.0)),
        seed=random.randrange(SEEDS) if seed is None else int(seed),
    )
    penalties = Penalties(
        float(_given(body, "presence_penalty", 0.0)),
        float(_given(body, "frequency_penalty", 0.0)),
        float(_given(body, "repetition_penalty", 1.0)),
    )
    depth = int(_given(body, "num_speculative_tokens", depth))
    if body.get("speculative") is False:
        depth = 0
    return Request(
        tuple(prompt), max(1, int(_given(body, "max_tokens", 16))), sampler, penalties, depth
    )


def _given(body: Mapping[str, Any], name: str, default: float) -> Any:
    value = body.get(name)
    return default if value is None else value


class Direct:
    """An `Engine` over a double in the same process: no HTTP, hence thousands of samples a second.

    `extra` is merged into every body, so that one double can be two engines.
    """

    def __init__(
        self, double: Double, name: str = "double", extra: Mapping[str, object] | None = None
    ) -> None:
        self.double = double
        self.name = name
        self.extra = dict(extra or {})

    def ask(self, ask: Ask) -> Reply:
        start = time.perf_counter()
        first = 0.0
        pieces: list[Piece] = []
        for piece in self.double.pieces(body_of(ask) | self.extra | dict(ask.extra)):
            first = first or time.perf_counter() - start
            pieces.append(piece)
        return Reply(
            tokens=tuple(token for piece in pieces for token in piece.tokens),
            text="".join(piece.text for piece in pieces),
            finish=pieces[-1].finish,
            chosen=tuple(x for piece in pieces for x in piece.chosen) if ask.logprobs else None,
            top=tuple(row for piece in pieces for row in piece.top) if ask.logprobs else None,
            first_token_s=first,
            seconds=time.perf_counter() - start,
            drafted=sum(piece.drafted for piece in pieces),
            accepted=sum(piece.accepted for piece in pieces),
        )

    def ask_all(self, asks: Sequence[Ask], concurrency: int) -> list[Reply]:
        if concurrency == 1:
            return [self.ask(ask) for ask in asks]
        with ThreadPoolExecutor(concurrency) as pool:
            return list(pool.map(self.ask, asks))

    def drafts(self) -> None:
        """Count nothing beside the replies, which tell of their own drafts."""

    def facts(self) -> dict[str, Any]:
        return {
            "model": "double",
            "engine": "fspad-bench",
            "token_ids": True,
            "logprobs": True,
            "seeds": True,
        }


def body_of(ask: Ask) -> dict[str, Any]:
    """Return the body of the completions API for an ask, without `extra`."""
    body = asdict(ask)
    del body["extra"]
    for name in ("presence", "frequency", "repetition"):
        body[f"{name}_penalty"] = body.pop(name)
    return body
