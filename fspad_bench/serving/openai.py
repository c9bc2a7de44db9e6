"""An engine behind the OpenAI API: `OpenAIEngine("http://127.0.0.1:8000")`.

- The kind of server is told from what it says of its models; `dialect` names it where it cannot be.
- Replies are streamed where a stream holds all token ids, so that the time of the first token is
  measured here.
- Draft counts come from the reply, or else from the server's `/metrics` before and after it. The
  counters cannot be divided among requests that run at once: the counts of those are None.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter
from typing import Any

from fspad_bench.serving.bearer import token_from_env
from fspad_bench.serving.dialect import Answer, Completions, Dialect, TextOf, merged
from fspad_bench.serving.dialects import DIALECTS, Transformers, finished
from fspad_bench.serving.engine import Ask, Reply, check_supported
from fspad_bench.serving.http import Client
from fspad_bench.serving.metrics import Drafts, drafts
from fspad_bench.util.errors import BenchError, near

ABORTED = "abort"  # how vLLM and SGLang end an answer that they give up


class OpenAIEngine:
    """A server, asked by HTTP. Raises BenchError where it is not there or has no models.

    `model` is one of the server's, by default its first. `text_of` turns token ids into text, which
    servers need that read nothing else. `timeout` is the longest silence in seconds.
    """

    def __init__(
        self,
        url: str,
        token_from_env: Callable[[], str | None] = token_from_env,
        *,
        model: str | None = None,
        dialect: str | None = None,
        timeout: float = 120.0,
        retries: int = 3,
        text_of: TextOf | None = None,
    ) -> None:
        self.client = Client(url, token=token_from_env(), timeout=timeout, retries=retries)
        self.name = self.client.shown
        cards = self._models()
        card = self._card(cards, model)
        self.owner = str(card.get("owned_by") or "")
        kind = self._kind(dialect)
        self.dialect = kind(str(card["id"]), text_of)
        self._uses_metrics = self.drafts() is not None

    def ask(self, ask: Ask) -> Reply:
        """Send one request and wait for its answer."""
        before = self.drafts() if self._uses_metrics else None
        reply = self._asked(ask)
        if before is None:
            return reply
        if reply.drafted is not None:
            self._uses_metrics = False
            return reply
        after = self.drafts()
        counted = after.since(before) if after else None
        return replace(reply, **counted._asdict()) if counted else reply

    def ask_all(self, asks: Sequence[Ask], concurrency: int) -> list[Reply]:
        """Send many requests, at most `concurrency` at once; the replies are in the asks' order.

        The first error ends them all.
        """
        if concurrency == 1:
            return [self.ask(ask) for ask in asks]
        with ThreadPoolExecutor(concurrency) as pool:
            replies = [pool.submit(self._asked, ask) for ask in asks]
            try:
                return [reply.result() for reply in replies]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def facts(self) -> dict[str, Any]:
        """Return what is known of the server."""
        version = self._version()
        return {
            "url": self.name,
            "model": self.client.hidden(self.dialect.model),
            "engine": self.client.hidden(self.owner) or self.dialect.name,
            "version": version and self.client.hidden(version),
            "dialect": self.dialect.name,
            "token_ids": self.dialect.token_ids,
            "logprobs": self.dialect.logprobs,
            "seeds": self.dialect.seeds,
        }

    def drafts(self) -> Drafts | None:
        """Return the draft tokens that the server has counted so far, None where it counts none."""
        names = self.dialect.counters
        return drafts(self.client.optional("/metrics"), names) if names else None

    @property
    def unsupported(self) -> Sequence[str]:
        """The settings of sampling that it does not support."""
        return self.dialect.unsupported

    def _asked(self, ask: Ask) -> Reply:
        check_supported(self, ask)
        answer = Answer()
        clock = _Clock()
        body = finished(merged(self.dialect.body(ask), ask.extra))
        for event in self.client.events(self.dialect.path, body, clock.start):
            try:
                self.dialect.read(event, answer)
            except (TypeError, ValueError, KeyError, IndexError, AttributeError):
                raise self._foreign(_shown(event)) from None
            if answer.tokens or answer.text:
                clock.first_token(answer.size)
        seconds = clock.elapsed()
        if not answer.finish:
            raise BenchError(
                f"the answer of {self.name} broke off after {len(answer.tokens)} tokens",
                "see the server's log",
            )
        if answer.finish == ABORTED:
            raise BenchError(
                f"{self.name} gave an answer up after {len(answer.tokens)} tokens",
                "see the server's log",
            )
        at_once = clock.size == answer.size and len(answer.tokens) != 1
        return self._reply(answer, seconds if at_once else clock.first, seconds, ask)

    def _foreign(self, what: str) -> BenchError:
        return BenchError(
            f"an answer of {self.name} is not of the dialect '{self.dialect.name}': "
            f"{self.client.hidden(what)[:200]}",
            f"name its dialect: {', '.join(sorted(DIALECTS))}",
        )

    def _reply(self, answer: Answer, first: float, seconds: float, ask: Ask) -> Reply:
        """Return a whole answer; log-probabilities that are not one a token are left out.

        Raises BenchError for what is not of its type.
        """
        fault = answer.fault()
        if fault:
            raise self._foreign(fault)
        count = len(answer.tokens)
        whole = bool(ask.logprobs and count) and len(answer.chosen) == count
        top = whole and len(answer.top) == count and all(answer.top)
        return Reply(
            tokens=tuple(answer.tokens),
            text=self.client.hidden(answer.text),
            finish=self.client.hidden(answer.finish),
            chosen=tuple(answer.chosen) if whole else None,
            top=tuple(answer.top) if top else None,
            first_token_s=first if answer.first_ms is None else min(seconds, answer.first_ms / 1e3),
            seconds=seconds,
            drafted=answer.drafted,
            accepted=answer.accepted,
            tokens_known=bool(answer.tokens) or not answer.text,
        )

    def _models(self) -> list[dict[str, Any]]:
        listing = self.client.get_json("/v1/models")
        cards = listing.get("data") if isinstance(listing, dict) else None
        if not isinstance(cards, list):
            raise BenchError(
                f"{self.name} does not list its models", "give the address of an engine's server"
            )
        return [card for card in cards if isinstance(card, dict) and card.get("id")]

    def _card(self, cards: list[dict[str, Any]], model: str | None) -> dict[str, Any]:
        if model is None and cards:
            return cards[0]
        known = [str(card["id"]) for card in cards]
        names = [self.client.hidden(name) for name in known]
        if model is None:
            raise BenchError(f"{self.name} serves no model", "name one that it can load")
        if known and model not in known:
            raise BenchError(f"{self.name} does not serve '{model}'", near(model, names))
        return next((card for card in cards if card["id"] == model), {"id": model})

    def _kind(self, dialect: str | None) -> type[Dialect]:
        """Return the dialect that is named, or that the server is known to speak."""
        if dialect is not None:
            if dialect not in DIALECTS:
                raise BenchError(f"unknown dialect '{dialect}'", near(dialect, DIALECTS))
            return DIALECTS[dialect]
        if self.owner in DIALECTS:
            return DIALECTS[self.owner]
        return (
            Transformers
            if '"/load_model"' in self.client.optional("/openapi.json")
            else Completions
        )

    def _version(self) -> str | None:
        if not self.dialect.version_path:
            return None
        try:
            about = json.loads(self.client.optional(self.dialect.version_path) or "{}")
            version = about.get(self.dialect.version_field)
        except (ValueError, AttributeError, RecursionError):
            return None
        return None if version is None else str(version)


class _Clock:
    """The time since a request was sent, and when the first token came."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.began = perf_counter()
        self.first = 0.0
        self.size = 0  # of what came first

    def elapsed(self) -> float:
        return perf_counter() - self.began

    def first_token(self, size: int) -> None:
        """Note that something of the text has come, unless it had before."""
        if not self.first:
            self.first = self.elapsed()
            self.size = size


def _shown(event: object) -> str:
    try:
        return json.dumps(event)
    except RecursionError:
        return "nested too deep to be shown"
