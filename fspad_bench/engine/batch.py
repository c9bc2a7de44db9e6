"""Continuations of many prompts at once, for making data: a batch whose rows refill as answers finish.

Requests come in waves, each asked once the answers to the one before are there; several streams of waves share the
batch, so that nobody's last answers leave its rows idle. They are taken shortest first, so the rows in flight are of
one length and none widens the attention for all; new prompts are prefilled a handful at a time; a finished row's place
goes to the last one, so the rows at work are always the first, and no product is made for an idle one. The cache is as
wide as its longest row, and a little: then the keys and values of a step are one block of memory, which a batched
product reads where it is. Nothing is measured here: the decoders' own loop is `decoding`.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fspad_bench.engine.target import TransformersTarget
from fspad_bench.errors import BenchError

PREFILL_TOKENS = 4096  # of one admission; bounds its memory
ROW_TOKENS = 1024
WIDEN = 64  # columns by which a cache grows; it shrinks when twice as many stand idle


class Request(NamedTuple):
    """A prompt, the temperature of its answer (0 is greedy) and the most tokens that it may have."""

    prompt: list[int]
    temperature: float
    length: int


class Wave(NamedTuple):
    """Requests that are asked at once, and the seed of what is drawn for them."""

    requests: Sequence[Request]
    seed: Sequence[int]


Answers = list[list[int]]
Made = TypeVar("Made")
Stream = Generator[Wave, Answers, Made]


@dataclass
class Asked:
    """A wave at work: how many answers are still awaited, and who awaits them."""

    then: Callable[[Answers], None]
    awaited: int
    answers: Answers = field(default_factory=list)

    def hear(self) -> None:
        """One more answer is whole."""
        self.awaited -= 1
        if not self.awaited:
            self.then(self.answers)


@dataclass
class Row:
    """A request of a wave: its own uniform variates, and what it said so far."""

    request: Request
    variates: np.ndarray
    said: list[int]
    asked: Asked

    @property
    def position(self) -> int:
        """Where the last token said stands."""
        return len(self.request.prompt) + len(self.said) - 1


class Batch:
    """The KV cache of up to `rows` sequences, a layer `[rows, H_kv, width, D]`, and forwards over it."""

    def __init__(self, target: TransformersTarget, rows: int) -> None:
        if target.lean is None:
            raise BenchError(
                f"{target.name} has no lean forward",
                "a plain Llama, Mistral or Qwen is needed here",
            )
        self.target = target
        self.lean = target.lean
        self.width = WIDEN
        shape = (rows, self.lean.kv_heads, self.width, self.lean.head_dim)
        # zeros: what a row does not see is weighted by 0, which would not silence a NaN
        self.keys, self.values = (
            [torch.zeros(shape, dtype=target.dtype, device=target.device) for _ in self.lean.layers]
            for _ in range(2)
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
        count = len(parts)
        width = max(map(len, parts))
        end = start + width
        self._widen(end, shrink=False)
        padded = [part + [0] * (width - len(part)) for part in parts]
        rope = self.lean.rope(range(start, end)).repeat(1, count, 1)
        mask = (
            torch.ones(width, end, dtype=torch.bool, device=self.target.device).tril(start)
            if start
            else None
        )

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (
                x.unflatten(1, (count, width)).transpose(0, 1) for x in (query, key, value)
            )
            keys, values = (
                held[layer][first : first + count, :, :end] for held in (self.keys, self.values)
            )
            keys[:, :, start:] = key
            values[:, :, start:] = value
            seen = scaled_dot_product_attention(
                query,
                keys,
                values,
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=self.target.groups > 1,
            )
            return seen.transpose(0, 1).flatten(1, 2)

        ids = self._ids([token for row in padded for token in row])
        features = self.lean(ids, rope, self.lean.rotating(attend))
        return features.unflatten(0, (count, width))

    def step(self, tokens: list[int], positions: list[int]) -> Tensor:
        """One more token for each of the first rows, at its position; the logits after it, `[R, V]`."""
        count = len(tokens)
        end = max(positions) + 1
        self._widen(end, shrink=True)
        own = torch.arange(count, device=self.target.device)
        at = self._ids(positions)
        hidden = torch.zeros(count, 1, 1, self.width, device=at.device)
        hidden.masked_fill_(
            (torch.arange(self.width, device=at.device) > at[:, None])[:, None, None], float("-inf")
        )
        scale = self.lean.head_dim**-0.5

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys = self.keys[layer][:count]
            values = self.values[layer][:count]
            keys[own, :, at] = key.transpose(0, 1)
            values[own, :, at] = value.transpose(0, 1)
            query = query.unflatten(0, (self.lean.kv_heads, -1)).permute(2, 0, 1, 3)
            scores = (query @ keys.transpose(-1, -2)).float() * scale + hidden
            seen = (
                scores.softmax(-1).to(values.dtype) @ values
            )  # on a CPU a quarter of the fused kernel's time
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


class Group:
    """Requests that one cache suits: those that wait, the shortest last, and the rows at work."""

    def __init__(self, target: TransformersTarget, rows: int) -> None:
        self.target = target
        self.rows = rows
        self.batch: Batch | None = None  # while there is anything to do
        self.waiting: list[Row] = []
        self.working: list[Row] = []

    @property
    def load(self) -> float:
        """Which share of the rows would be at work."""
        return min(1.0, (len(self.waiting) + len(self.working)) / self.rows)

    def wait(self, rows: Sequence[Row]) -> None:
        self.waiting = sorted(
            [*reversed(rows), *self.waiting], key=lambda row: len(row.request.prompt), reverse=True
        )

    def turn(self) -> tuple[int, list[Row]]:
        """Each row's next token, or new rows' first ones; how many tokens that makes, and the rows that are done."""
        self.batch = self.batch or Batch(self.target, self.rows)
        if self.waiting and len(self.working) <= self.rows - max(1, self.rows // 4):
            new = self._next_rows()
            _say(self.batch.prefill(len(self.working), [row.request.prompt for row in new]), new)
            self.working += new
        else:
            new = self.working
            _say(self.batch.step([row.said[-1] for row in new], [row.position for row in new]), new)
        made = len(new)
        done = []
        for place in range(len(self.working) - 1, -1, -1):
            row = self.working[place]
            if row.said[-1] in self.target.stop_ids or len(row.said) == row.request.length:
                done.append(row)
                last = self.working.pop()
                if last is not row:
                    self.batch.move(len(self.working), place, last.position + 1)
                    self.working[place] = last
        if not (self.waiting or self.working):
            self.batch = None
        return made, done

    def _next_rows(self) -> list[Row]:
        """The shortest that wait, as many as there is room for."""
        taken: list[Row] = []
        while self.waiting and len(self.working) + len(taken) < self.rows:
            if taken and (len(taken) + 1) * len(self.waiting[-1].request.prompt) > PREFILL_TOKENS:
                break
            taken.append(self.waiting.pop())
        return taken


class Pool:
    """Waves of requests at work together. Long requests run apart from short ones and fewer at once: a cache has room
    for `ROW_TOKENS` tokens times `rows`, or for one row."""

    def __init__(self, target: TransformersTarget, rows: int) -> None:
        self.target = target
        self.rows = rows
        self.groups: dict[int, Group] = {}

    def ask(self, wave: Wave, then: Callable[[Answers], None]) -> None:
        """`then` is called with the answers, in the order of the requests, once all are there."""
        if not wave.requests:
            then([])
            return
        asked = Asked(then, len(wave.requests))
        parts = defaultdict(list)
        for place, request in enumerate(wave.requests):
            asked.answers.append(said := [])
            variates = np.random.default_rng([*wave.seed, place]).random(request.length)
            size = ((len(request.prompt) + request.length - 1) // ROW_TOKENS).bit_length()
            parts[size].append(Row(request, variates, said, asked))
        for size, rows in parts.items():
            group = self.groups.setdefault(size, Group(self.target, max(1, self.rows >> size)))
            group.wait(rows)

    def turn(self) -> int:
        """Work for the group that leaves the fewest of its rows idle; how many tokens that made."""
        made, done = max(self.groups.values(), key=lambda group: group.load).turn()
        for row in done:
            row.asked.hear()
        return made


@dataclass
class Flight(Generic[Made]):
    """A stream that has begun, and what it came to."""

    stream: Stream[Made]
    pool: Pool
    landed: bool = False
    made: Made | None = None

    def go(self, answers: Answers | None) -> None:
        try:
            wave = self.stream.send(answers)
        except StopIteration as end:
            self.landed = True
            self.made = end.value
        else:
            self.pool.ask(wave, self.go)


@torch.inference_mode()
def answer_streams(
    target: TransformersTarget,
    streams: Iterable[Stream[Made]],
    *,
    rows: int,
    ahead: int = 1,
    told: Callable[[int], None] = lambda count: None,
) -> Iterator[Made]:
    """What each stream returns, in their order. A stream yields waves and is sent the answers to each.

    An answer has its stop id where it came to one; `told` hears of tokens as they are made. Up to `ahead` streams are
    begun and not yet handed out: where the last answers of a wave are awaited, rows of others are at work beside them.
    What is drawn follows from (seed, place of the request) of a wave, not from what shared its batch.
    """
    pool = Pool(target, rows)
    waiting = iter(streams)
    flights = deque()
    while True:
        while len(flights) < ahead and (stream := next(waiting, None)) is not None:
            flights.append(Flight(stream, pool))
            flights[-1].go(None)
        if not flights:
            return
        if flights[0].landed:
            yield flights.popleft().made
        else:
            told(pool.turn())


def common_prefix(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with."""
    low = min(rows)
    high = max(rows)
    return next(
        (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b),
        min(len(low), len(high)),
    )


def _say(logits: Tensor, rows: Sequence[Row]) -> None:
    """Each row's next token: the argmax, or where its variate falls in the law's distribution."""
    chosen = logits.argmax(-1)
    drawn = [i for i, row in enumerate(rows) if row.request.temperature]
    if drawn:
        heat = torch.tensor([rows[i].request.temperature for i in drawn], device=logits.device)
        u = torch.tensor(
            [rows[i].variates[len(rows[i].said)] for i in drawn], dtype=torch.float32
        ).to(logits.device)
        mass = (logits[drawn].float() / heat[:, None]).softmax(-1).cumsum(-1)
        found = torch.searchsorted(mass, (u[:, None] * mass[:, -1:]), right=True)[:, 0]
        chosen[drawn] = found.clamp(max=logits.shape[-1] - 1)
    for row, token in zip(rows, chosen.tolist(), strict=True):
        row.said.append(token)
