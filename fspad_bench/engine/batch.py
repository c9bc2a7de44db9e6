"""Continuous batching for data generation: one batch continues many prompts at once.

`distill` uses it to write training data. It is not the measured path: decoders are timed at batch 1
in the loop of `core.loop`, and nothing here is.

- Requests come in waves. A stream yields a wave and is sent its answers; several streams share the
  batch, so slots stay busy while the last answers of a wave are awaited.
- What is drawn follows from (seed of the wave, index of the request), not from what shared its
  batch.
- Waiting requests start shortest first, so the sequences in a batch have similar lengths and none
  widens the attention of the others. New prompts are prefilled in portions of at most
  `PREFILL_TOKENS`.
- The sequences at work occupy the first slots: the last one moves into the slot of one that has
  finished.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from fspad_bench.core.sampling import NotFiniteError
from fspad_bench.engine.batch_cache import BatchCache
from fspad_bench.engine.target import TransformersTarget

PREFILL_TOKENS = 4096  # per prefill; bounds its memory
SLOT_TOKENS = 1024


class Request(NamedTuple):
    """A prompt, the temperature of its answer (0 is greedy), and the answer's maximal length."""

    prompt: list[int]
    temperature: float
    length: int


class Wave(NamedTuple):
    """Requests that are submitted together, and the seed of what is drawn for them."""

    requests: Sequence[Request]
    seed: Sequence[int]


Answers = list[list[int]]
Result = TypeVar("Result")
Stream = Generator[Wave, Answers, Result]
"""A stream yields waves, is sent the answers to each, and returns its result."""


@dataclass
class PendingWave:
    """A wave at work: its answers in the order of its requests, and how many are unfinished."""

    on_complete: Callable[[Answers], None]
    unfinished: int
    answers: Answers = field(default_factory=list)

    def complete_one(self) -> None:
        """Count one more finished answer; hand all of them to `on_complete` with the last."""
        self.unfinished -= 1
        if not self.unfinished:
            self.on_complete(self.answers)


@dataclass
class RequestState:
    """A request, waiting or at work, its own uniform variates, and its answer so far."""

    request: Request
    variates: np.ndarray
    answer: list[int]
    wave: PendingWave

    @property
    def position(self) -> int:
        """Position of the answer's last token."""
        return len(self.request.prompt) + len(self.answer) - 1


class RequestGroup:
    """Requests of similar length that share one cache.

    Those waiting are ordered with the shortest last; those at work occupy the first slots.
    """

    def __init__(self, target: TransformersTarget, slots: int) -> None:
        self.target = target
        self.slots = slots
        self.cache: BatchCache | None = None  # freed while the group is idle
        self.waiting: list[RequestState] = []
        self.working: list[RequestState] = []

    @property
    def load(self) -> float:
        """Share of the slots that a step would use."""
        return min(1.0, (len(self.waiting) + len(self.working)) / self.slots)

    def enqueue(self, requests: Sequence[RequestState]) -> None:
        self.waiting = sorted(
            [*reversed(requests), *self.waiting],
            key=lambda state: len(state.request.prompt),
            reverse=True,
        )

    def step(self) -> tuple[int, list[RequestState]]:
        """Prefill waiting requests, or add one token to each at work.

        Return the number of new tokens, and the requests whose answers are finished.
        """
        self.cache = self.cache or BatchCache(self.target, self.slots)
        # a prefill waits until a quarter of the slots is free, so that it is worth its forward
        if self.waiting and len(self.working) <= self.slots - max(1, self.slots // 4):
            batch = self._next_requests()
            logits = self.cache.prefill(
                len(self.working), [state.request.prompt for state in batch]
            )
            self.working += batch
        else:
            batch = self.working
            logits = self.cache.step(
                [state.answer[-1] for state in batch], [state.position for state in batch]
            )
        append_next_tokens(logits, batch)
        new_tokens = len(batch)
        finished = self._remove_finished(self.cache)
        if not (self.waiting or self.working):
            self.cache = None
        return new_tokens, finished

    def _next_requests(self) -> list[RequestState]:
        """Take the shortest waiting requests, as many as slots and `PREFILL_TOKENS` allow."""
        batch: list[RequestState] = []
        while self.waiting and len(self.working) + len(batch) < self.slots:
            if batch and (len(batch) + 1) * len(self.waiting[-1].request.prompt) > PREFILL_TOKENS:
                break
            batch.append(self.waiting.pop())
        return batch

    def _remove_finished(self, cache: BatchCache) -> list[RequestState]:
        """Take finished requests off the batch; the last sequence fills each free slot."""
        finished = []
        for slot in range(len(self.working) - 1, -1, -1):
            state = self.working[slot]
            if not self._is_finished(state):
                continue
            finished.append(state)
            last = self.working.pop()
            if last is not state:
                cache.move(len(self.working), slot, last.position + 1)
                self.working[slot] = last
        return finished

    def _is_finished(self, state: RequestState) -> bool:
        stopped = state.answer[-1] in self.target.stop_ids
        return stopped or len(state.answer) == state.request.length


class Scheduler:
    """Runs the requests of all waves, grouped by length.

    Long requests run apart from short ones and fewer at once: a group's cache has room for
    `SLOT_TOKENS` tokens times `slots`, or for one sequence.
    """

    def __init__(self, target: TransformersTarget, slots: int) -> None:
        self.target = target
        self.slots = slots
        self.groups: dict[int, RequestGroup] = {}

    def submit(self, wave: Wave, on_complete: Callable[[Answers], None]) -> None:
        """Enqueue a wave; call `on_complete` with its answers, in the order of the requests."""
        if not wave.requests:
            on_complete([])
            return
        pending = PendingWave(on_complete, len(wave.requests))
        by_size: dict[int, list[RequestState]] = defaultdict(list)
        for index, request in enumerate(wave.requests):
            answer: list[int] = []
            pending.answers.append(answer)
            variates = np.random.default_rng([*wave.seed, index]).random(request.length)
            # the power of two, in units of SLOT_TOKENS, that the sequence fits
            size = ((len(request.prompt) + request.length - 1) // SLOT_TOKENS).bit_length()
            by_size[size].append(RequestState(request, variates, answer, pending))
        for size, states in by_size.items():
            if size not in self.groups:
                self.groups[size] = RequestGroup(self.target, max(1, self.slots >> size))
            self.groups[size].enqueue(states)

    def step(self) -> int:
        """Step the group with the largest share of busy slots; return the number of new tokens."""
        group = max(self.groups.values(), key=lambda group: group.load)
        new_tokens, finished = group.step()
        for state in finished:
            state.wave.complete_one()
        return new_tokens


@dataclass
class StreamState(Generic[Result]):
    """A stream that has started, and its result once it is `done`."""

    stream: Stream[Result]
    scheduler: Scheduler
    done: bool = False
    result: Result | None = None

    def advance(self, answers: Answers | None) -> None:
        """Send the answers to the last wave (None starts the stream); submit the next wave."""
        try:
            wave = next(self.stream) if answers is None else self.stream.send(answers)
        except StopIteration as end:
            self.done = True
            self.result = end.value
        else:
            self.scheduler.submit(wave, self.advance)


@torch.inference_mode()
def answer_streams(
    target: TransformersTarget,
    streams: Iterable[Stream[Result]],
    *,
    slots: int,
    ahead: int = 1,
    on_tokens: Callable[[int], None] = lambda count: None,
) -> Iterator[Result]:
    """Yield the result of each stream, in their order.

    An answer includes its stop id where it reached one. Up to `ahead` streams are started and not
    yet yielded, so the slots stay busy while the first of them waits for its last answers.
    `on_tokens` is called with the number of new tokens after every step.
    """
    scheduler = Scheduler(target, slots)
    not_started = iter(streams)
    started: deque[StreamState[Result]] = deque()
    while True:
        while len(started) < ahead and (stream := next(not_started, None)) is not None:
            started.append(StreamState(stream, scheduler))
            started[-1].advance(None)
        if not started:
            return
        if started[0].done:
            yield started.popleft().result  # type: ignore[misc]  # set with `done`
        else:
            on_tokens(scheduler.step())


def append_next_tokens(logits: Tensor, states: Sequence[RequestState]) -> None:
    """Append each request's next token: the argmax, or a draw by the request's variate.

    logits `[R, V]`, one row per request. Raises NotFiniteError.
    """
    tokens = logits.argmax(-1)
    if not torch.isfinite(logits.gather(-1, tokens[:, None])).all():
        raise NotFiniteError
    sampled = [i for i, state in enumerate(states) if state.request.temperature]
    if sampled:
        temperature = torch.tensor(
            [states[i].request.temperature for i in sampled], device=logits.device
        )
        variate = torch.tensor(
            [states[i].variates[len(states[i].answer)] for i in sampled], dtype=torch.float32
        ).to(logits.device)
        variate = variate.clamp(max=1 - 2**-24)  # in float32 the largest would be 1
        # inverse transform sampling: the first token whose cumulative mass exceeds the variate
        cumulative = (logits[sampled].float() / temperature[:, None]).softmax(-1).cumsum(-1)
        threshold = variate[:, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
        tokens[sampled] = drawn.clamp(max=logits.shape[-1] - 1)
    for state, token in zip(states, tokens.tolist(), strict=True):
        state.answer.append(token)
