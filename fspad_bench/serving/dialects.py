"""Dialects of servers that have an API of their own beside the completions API, or give text alone.

Sources: docs.sglang.io ("Sampling Parameters"), llama.cpp's `tools/server/README.md`, and
`transformers serve` of transformers 5.24 (`cli/serving`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fspad_bench.serving.dialect import Answer, Completions, Dialect, TensorRT
from fspad_bench.serving.engine import Ask
from fspad_bench.util.errors import BenchError


class SGLang(Dialect):
    """SGLang's `/generate`. Its events hold all that came before, unless the server streams
    increments.

    Seeds count where the server runs with `--enable-deterministic-inference`.
    """

    name = "sglang"
    path = "/generate"
    version_path = "/server_info"

    def body(self, ask: Ask) -> dict[str, Any]:
        sampling: dict[str, Any] = {
            "max_new_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "top_p": ask.top_p,
            "top_k": ask.top_k or -1,
            "min_p": ask.min_p,
            "presence_penalty": ask.presence,
            "frequency_penalty": ask.frequency,
            "repetition_penalty": ask.repetition,
        }
        if ask.seed is not None:
            sampling["sampling_seed"] = ask.seed
        body = {"input_ids": list(ask.prompt), "sampling_params": sampling, "stream": True}
        if ask.logprobs:
            body |= {"return_logprob": True, "top_logprobs_num": ask.logprobs}
        return body

    def read(self, event: Mapping[str, Any], answer: Answer) -> None:
        about = event.get("meta_info") or {}
        made = about.get("completion_tokens")
        text = event.get("text") or ""
        answer.text = text if text.startswith(answer.text) else answer.text + text
        _add(answer.tokens, event.get("output_ids") or [], made)
        rows = about.get("output_token_logprobs") or []
        _add(answer.chosen, [row[0] for row in rows], made)
        best = about.get("output_top_logprobs") or []
        _add(answer.top, [{entry[1]: entry[0] for entry in row or ()} for row in best], made)
        answer.finish = (about.get("finish_reason") or {}).get("type") or answer.finish
        if about.get("spec_verify_ct") is not None:
            answer.drafted = about.get("spec_draft_token_num")
            answer.accepted = about.get("spec_accept_token_num")


class LlamaCpp(Dialect):
    """llama.cpp's `/completion`. It gives no log-probabilities of what it speculates.

    - `cache_prompt` is off: with it, logits depend on what was asked before.
    - Answers come whole: from a stream the server leaves out the ids of tokens that end within a
      character (`process_token` of its `server-context.cpp`). It tells when the prompt was read.
    """

    name = "llamacpp"
    path = "/completion"
    version_path = "/props"
    version_field = "build_info"

    def body(self, ask: Ask) -> dict[str, Any]:
        return {
            "prompt": list(ask.prompt),
            "n_predict": ask.max_tokens,
            "temperature": ask.temperature,
            "top_k": ask.top_k,
            "top_p": ask.top_p,
            "min_p": ask.min_p,
            "presence_penalty": ask.presence,
            "frequency_penalty": ask.frequency,
            "repeat_penalty": ask.repetition,
            "repeat_last_n": len(ask.prompt) + ask.max_tokens,
            "seed": -1 if ask.seed is None else ask.seed,
            "n_probs": ask.logprobs,
            "return_tokens": True,
            "cache_prompt": False,
            "stream": False,
        }

    def read(self, event: Mapping[str, Any], answer: Answer) -> None:
        answer.text += event.get("content") or ""
        answer.tokens += event.get("tokens") or ()
        for row in event.get("completion_probabilities") or ():
            if not row.get("top_logprobs"):
                continue  # of a speculated token: a place-holder
            answer.chosen.append(row["logprob"])
            answer.top.append({x["id"]: x["logprob"] for x in row.get("top_logprobs") or ()})
        if event.get("stop"):
            answer.finish = "length" if event.get("stop_type") == "limit" else "stop"
            timings = event.get("timings") or {}
            if "predicted_n" in timings:  # a count of 0 is left out
                answer.drafted = timings.get("draft_n", 0)
                answer.accepted = timings.get("draft_n_accepted", 0)
            answer.first_ms = timings.get("prompt_ms")


class Transformers(Dialect):
    """`transformers serve`: text in, text out.

    All settings go through `generation_config`, a JSON text that may also hold
    `prompt_lookup_num_tokens` and the like; `extra` may give it as a mapping. Cuts are left out at
    temperature 0, where they would change nothing.
    """

    name = "transformers"
    unsupported = ("presence", "frequency")
    version_path = ""
    token_ids = False
    logprobs = False

    def body(self, ask: Ask) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "max_new_tokens": ask.max_tokens,
            "do_sample": ask.temperature > 0,
            "repetition_penalty": ask.repetition,
        }
        if ask.temperature:
            settings |= {"temperature": ask.temperature, "top_p": ask.top_p, "top_k": ask.top_k}
            settings |= {"min_p": ask.min_p}
        body = {
            "model": self.model,
            "prompt": text_of(self, ask),
            "generation_config": settings,
            "stream": True,
        }
        return body if ask.seed is None else body | {"seed": ask.seed}

    def read(self, event: Mapping[str, Any], answer: Answer) -> None:
        for choice in event.get("choices") or ():
            answer.text += choice.get("text") or ""
            answer.finish = choice.get("finish_reason") or answer.finish


class Chat(Dialect):
    """A server that has the chat API alone: the prompt's text is one message of a user."""

    name = "chat"
    unsupported = ("top_k", "min_p", "repetition")
    path = "/v1/chat/completions"
    version_path = ""
    token_ids = False
    logprobs = False

    def body(self, ask: Ask) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": text_of(self, ask)}],
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "top_p": ask.top_p,
            "presence_penalty": ask.presence,
            "frequency_penalty": ask.frequency,
            "stream": True,
        }
        return body if ask.seed is None else body | {"seed": ask.seed}

    def read(self, event: Mapping[str, Any], answer: Answer) -> None:
        for choice in event.get("choices") or ():
            message = choice.get("delta") or choice.get("message") or {}
            answer.text += message.get("content") or ""
            answer.finish = choice.get("finish_reason") or answer.finish


DIALECTS: dict[str, type[Dialect]] = {
    kind.name: kind for kind in (Completions, SGLang, LlamaCpp, TensorRT, Transformers, Chat)
}


def text_of(dialect: Dialect, ask: Ask) -> str:
    """Return a prompt as text. Raises BenchError where there is no tokenizer."""
    if dialect.text_of is None:
        raise BenchError(
            f"a server of kind '{dialect.name}' reads text, and the prompt is token ids",
            "name the model's tokenizer",
        )
    return dialect.text_of(ask.prompt)


def finished(body: dict[str, Any]) -> dict[str, Any]:
    """Return a body as it is sent: `generation_config` is a JSON text there."""
    settings = body.get("generation_config")
    if isinstance(settings, Mapping):
        return body | {"generation_config": json.dumps(settings)}
    return body


def _add(known: list[Any], new: list[Any], made: int | None) -> None:
    """Add to a list what an event holds: all that came so far, or what is new."""
    if made is not None and len(new) == made:
        known[:] = new
    else:
        known += new
