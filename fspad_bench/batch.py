"""Continuations of many prompts at once, for making data: a batch whose rows refill as answers finish.

Requests are taken shortest first, so the rows in flight are of one length and none widens the attention for all; new
prompts are prefilled a handful at a time; a finished row's place goes to the last one, so the rows at work are always
the first, and no product is made for an idle one. The cache is as wide as its longest row, and a little: then the keys
and values of a step are one block of memory, which a batched product reads where it is. Nothing is measured here: the
decoders' own loop is `decoding`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fspad_bench.errors import BenchError
from fspad_bench.target import TransformersTarget

PREFILL_TOKENS = 4096  # of one admission; bounds its memory
ROW_TOKENS = 1024
WIDEN = 64  # columns by which a cache grows; it shrinks when twice as many stand idle


class Request(NamedTuple):
    """A prompt, the temperature of its answer (0 is greedy) and the most tokens that it may have."""

    prompt: list[int]
    temperature: float
    length: int


@dataclass
class Row:
    """A request at work: `place` among the answers, what it said so far, and its own uniform variates."""

    place: int
    request: Request
    variates: np.ndarray
    said: list[int] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Where the last token said stands."""
        return len(self.request.prompt) + len(self.said) - 1


class Batch:
    """The KV cache of up to `rows` sequences, a layer `[rows, H_kv, width, D]`, and forwards over it."""

    def __init__(self, target: TransformersTarget, rows: int) -> None:
        if target.lean is None:
            raise BenchError(f"{target.name} has no lean forward", "a plain Llama, Mistral or Qwen is needed here")
        self.target, self.lean = target, target.lean
        self.width = WIDEN
        shape = (rows, self.lean.kv_heads, self.width, self.lean.head_dim)
        # zeros: what a row does not see is weighted by 0, which would not silence a NaN
        self.keys, self.values = (
            [torch.zeros(shape, dtype=target.dtype, device=target.device) for _ in self.lean.layers] for _ in range(2)
        )

    def prefill(self, first: int, prompts: Sequence[list[int]]) -> Tensor:
        """Fill the rows from `first` on; the logits after each prompt, `[R, V]`.

        What all prompts begin with is run once.
        """
        shared = min(common_prefix(prompts), min(map(len, prompts)) - 1)
        if shared:
            self._fill(first, [prompts[0][:shared]], 0)
            for held in (*self.keys, *self.values):
                held[first + 1 : first + len(prompts), :, :shared] = held[first, :, :shared]
        features = self._fill(first, [prompt[shared:] for prompt in prompts], shared)
        last = self._ids([len(prompt) - shared - 1 for prompt in prompts])
        return self.target.logits(features[torch.arange(len(prompts), device=last.device), last])

    def _fill(self, first: int, parts: Sequence[list[int]], start: int) -> Tensor:
        """Run tokens from position `start` on, a part a row; their features `[R, L, d]`, padded on the right."""
        count, width = len(parts), max(map(len, parts))
        end = start + width
        self._widen(end, shrink=False)
        padded = [part + [0] * (width - len(part)) for part in parts]
        rope = self.lean.rope(range(start, end)).repeat(1, count, 1)
        mask = torch.ones(width, end, dtype=torch.bool, device=self.target.device).tril(start) if start else None

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (x.unflatten(1, (count, width)).transpose(0, 1) for x in (query, key, value))
            keys, values = (held[layer][first : first + count, :, :end] for held in (self.keys, self.values))
            keys[:, :, start:], values[:, :, start:] = key, value
            seen = scaled_dot_product_attention(
                query, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=self.target.groups > 1
            )
            return seen.transpose(0, 1).flatten(1, 2)

        ids = self._ids([token for row in padded for token in row])
        features = self.lean(ids, rope, self.lean.rotating(attend))
        return features.unflatten(0, (count, width))

    def step(self, tokens: list[int], positions: list[int]) -> Tensor:
        """One more token for each of the first rows, at its position; the logits after it, `[R, V]`."""
        count, end = len(tokens), max(positions) + 1
        self._widen(end, shrink=True)
        own, at = torch.arange(count, device=self.target.device), self._ids(positions)
        hidden = torch.zeros(count, 1, 1, self.width, device=at.device)
        hidden.masked_fill_((torch.arange(self.width, device=at.device) > at[:, None])[:, None, None], float("-inf"))
        scale = self.lean.head_dim**-0.5

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self.keys[layer][:count], self.values[layer][:count]
            keys[own, :, at], values[own, :, at] = key.transpose(0, 1), value.transpose(0, 1)
            query = query.unflatten(0, (self.lean.kv_heads, -1)).permute(2, 0, 1, 3)
            scores = (query @ keys.transpose(-1, -2)).float() * scale + hidden
            seen = scores.softmax(-1).to(values.dtype) @ values  # on a CPU a quarter of the fused kernel's time
            return seen.permute(1, 2, 0, 3).flatten(0, 1)

        rope = self.lean.rope_at(at, end)
        return self.target.logits(self.lean(self._ids(tokens), rope, self.lean.rotating(attend)))

    def move(self, source: int, place: int, length: int) -> None:
        """Row `source` takes the place of another."""
        for held in (*self.keys, *self.values):
            held[place, :, :length] = held[source, :, :length]

    def _widen(self, end: int, *, shrink: bool) -> None:
        """Room for `end` columns, one layer after the other; what lies behind them may go."""
        width = -(-end // WIDEN) * WIDEN
        if width <= self.width and not (shrink and width <= self.width - 2 * WIDEN):
            return
        kept = min(width, self.width)
        for held in (self.keys, self.values):
            for layer, old in enumerate(held):
                held[layer] = old.new_zeros(*old.shape[:2], width, old.shape[3])
                held[layer][:, :, :kept] = old[:, :, :kept]
        self.width = width

    def _ids(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self.target.device)


@torch.inference_mode()
def answer_all(
    target: TransformersTarget,
    requests: Sequence[Request],
    *,
    rows: int,
    seed: Sequence[int],
    told: Callable[[int], None] = lambda count: None,
) -> list[list[int]]:
    """The answer to each request, its stop id included where it came to one; `told` hears of tokens as they are made.

    What is drawn follows from (seed, place of the request), not from which rows shared its batch. Long requests run
    apart from short ones and fewer at once: a cache has room for `ROW_TOKENS` tokens times `rows`, or for one row.
    """
    answers: list[list[int]] = [[] for _ in requests]
    for part in _alike(requests):
        capacity = max(len(requests[i].prompt) + requests[i].length for i in part)
        together = min(len(part), max(1, min(rows, rows * ROW_TOKENS // capacity)))
        _answer_part(target, requests, part, answers, together, seed, told)
    return answers


def _alike(requests: Sequence[Request]) -> list[list[int]]:
    """Places of requests in groups that one cache suits: up to `ROW_TOKENS` tokens, twice as many, and so on."""
    groups: dict[int, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(((len(request.prompt) + request.length - 1) // ROW_TOKENS).bit_length(), []).append(place)
    return [groups[size] for size in sorted(groups)]


def _answer_part(
    target: TransformersTarget,
    requests: Sequence[Request],
    part: list[int],
    answers: list[list[int]],
    rows: int,
    seed: Sequence[int],
    told: Callable[[int], None],
) -> None:
    order = sorted(part, key=lambda i: (len(requests[i].prompt), i), reverse=True)  # pop: the shortest
    batch, working = Batch(target, rows), []
    while order or working:
        if order and len(working) <= rows - max(1, rows // 4):
            new = _next_rows(requests, order, rows - len(working), seed)
            _say(batch.prefill(len(working), [row.request.prompt for row in new]), new)
            working += new
        else:
            _say(batch.step([row.said[-1] for row in working], [row.position for row in working]), working)
            new = working
        told(len(new))
        for place in range(len(working) - 1, -1, -1):
            row = working[place]
            if row.said[-1] in target.stop_ids or len(row.said) == row.request.length:
                answers[row.place] = row.said
                last = working.pop()
                if last is not row:
                    batch.move(len(working), place, last.position + 1)
                    working[place] = last


def common_prefix(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with."""
    low, high = min(rows), max(rows)
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def _next_rows(requests: Sequence[Request], order: list[int], free: int, seed: Sequence[int]) -> list[Row]:
    """The shortest requests that wait, as many as there is room for."""
    taken: list[Row] = []
    while order and len(taken) < free:
        place = order[-1]
        if taken and (len(taken) + 1) * len(requests[place].prompt) > PREFILL_TOKENS:
            break
        request = requests[order.pop()]
        taken.append(Row(place, request, np.random.default_rng([*seed, place]).random(request.length)))
    return taken


def _say(logits: Tensor, rows: Sequence[Row]) -> None:
    """Each row's next token: the argmax, or where its variate falls in the law's distribution."""
    chosen = logits.argmax(-1)
    drawn = [i for i, row in enumerate(rows) if row.request.temperature]
    if drawn:
        heat = torch.tensor([rows[i].request.temperature for i in drawn], device=logits.device)
        u = torch.tensor([rows[i].variates[len(rows[i].said)] for i in drawn], dtype=torch.float32).to(logits.device)
        mass = (logits[drawn].float() / heat[:, None]).softmax(-1).cumsum(-1)
        found = torch.searchsorted(mass, (u[:, None] * mass[:, -1:]), right=True)[:, 0]
        chosen[drawn] = found.clamp(max=logits.shape[-1] - 1)
    for row, token in zip(rows, chosen.tolist(), strict=True):
        row.said.append(token)
