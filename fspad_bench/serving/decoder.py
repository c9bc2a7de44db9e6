"""A served engine as a foreign decoder of a run: `--decoder served:http://127.0.0.1:8000`.

- It is asked for each prompt's token ids, one request at a time, and its tokens are held to
  vanilla's of the target. The call is timed from outside; the time of its first token, its decode
  speed and its acceptance are claims.
- The server must serve the target's model: its ids are read as the target's.
"""

from __future__ import annotations

from typing import Any

from fspad_bench.core.protocols import Generation, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.serving.engine import Ask, Engine, Reply
from fspad_bench.serving.openai import OpenAIEngine
from fspad_bench.serving.processes import processes_behind
from fspad_bench.util.errors import BenchError
from fspad_bench.util.text import json_object

SEEDS = 2**31


class Served:
    """An engine behind the OpenAI API.

    `model`, `dialect`, `timeout` and `retries` are `OpenAIEngine`'s. `extra` is a JSON object that
    is merged into the body of every request.
    """

    def __init__(
        self,
        target: TransformersTarget,
        *,
        url: str,
        model: str | None = None,
        dialect: str | None = None,
        timeout: float = 120.0,
        retries: int = 3,
        extra: str = "{}",
    ) -> None:
        self.extra = _object(extra)
        self.engine: Engine = OpenAIEngine(
            url, model=model, dialect=dialect, timeout=timeout, retries=retries
        )
        self.facts = self.engine.facts()
        if not self.facts["token_ids"]:
            raise BenchError(
                f"{self.engine.name} gives text alone, and a row compares token ids",
                "run a server that returns them, such as vLLM, SGLang or llama.cpp",
            )
        self._processes = processes_behind(url)

    def settings(self) -> dict[str, Any]:
        """Return which engine and model answer, and what every request adds."""
        return self.facts | {"extra": self.extra}

    def processes(self) -> list[int]:
        """Return the processes of this machine that answer."""
        return self._processes

    def generate(self, prompt: list[int], sampler: Sampler, limit: Limit) -> Generation:
        """Ask for one text. Raises BenchError where the server fails or gives no token ids."""
        reply = self.engine.ask(
            Ask(
                tuple(prompt),
                limit.max_new_tokens,
                temperature=sampler.temperature,
                top_p=sampler.top_p,
                top_k=sampler.top_k,
                seed=sampler.key[0] % SEEDS,
                extra=self.extra,
            )
        )
        if not reply.tokens_known:
            raise BenchError(f"{self.engine.name} gave text without token ids", "name its dialect")
        return _generation(_with_stop(reply, limit), reply)


def _generation(tokens: list[int], reply: Reply) -> Generation:
    """Return a reply as a generation; each step commits its accepted drafts and one more token."""
    seen = reply.first_token_s < reply.seconds  # or else the answer came at once
    decoded = max(0, len(tokens) - 1)
    steps = 0
    drafts: dict[str, int] = {}
    if reply.drafted is not None and reply.accepted is not None:
        drafts = {"drafted": reply.drafted, "accepted": reply.accepted}
        steps = max(0, decoded - reply.accepted)
    return Generation(
        tokens,
        prefill_seconds=reply.first_token_s if seen else 0.0,
        decode_seconds=reply.seconds - reply.first_token_s,
        forwards=steps,
        claims=drafts,
    )


def _with_stop(reply: Reply, limit: Limit) -> list[int]:
    """Return the tokens with the stop that ended them, which some servers leave out.

    Only where there is no doubt which stop it was.
    """
    tokens = list(reply.tokens)
    ended = reply.finish == "stop" and len(tokens) < limit.max_new_tokens
    if ended and len(limit.stop_ids) == 1 and not limit.stop_ids & set(tokens[-1:]):
        return tokens + list(limit.stop_ids)
    return tokens


def _object(text: str) -> dict[str, Any]:
    """Read a JSON object. Raises BenchError."""
    value = json_object(text)
    if value is None:
        raise BenchError(f"extra={text:.60} is not a JSON object", 'write it like {"top_k": 5}')
    return value
