"""The loop for several requests at once: each drafts and verifies by itself, and all trees of a
round share one forward of the target.

- A request has a session, a drafter's state and a sampler of its own, as in `core.loop`, so its
  tokens are those that it would get alone.
- Continuous batching: the place of a request that ends is taken by the next one that waits.
- Prefills are off the clock of a round, as they are off the decode clock of `core.loop`; all else
  is on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple, Protocol, Self

import torch

from fspad_bench.core.loop import Decoding
from fspad_bench.core.protocols import Drafter, Generation, Limit, Scores, Session, Target
from fspad_bench.core.tree import Tree
from fspad_bench.core.verification import Chooser


class SharedTarget(Target, Protocol):
    """A target that scores trees of several sessions in one forward."""

    def score_together(self, sessions: Any, trees: Sequence[Tree]) -> Sequence[Scores]: ...


class Question(NamedTuple):
    """A request: its prompt, and how its answer is drawn and ends."""

    prompt: Sequence[int]
    sampler: Chooser
    limit: Limit


class Round(NamedTuple):
    """One step of all requests at work: its seconds, the new tokens of each request by its number,
    and the nodes of all trees.
    """

    seconds: float
    tokens: dict[int, int]
    nodes: int


@dataclass
class Place:
    """A request at work."""

    number: int
    decoding: Decoding
    prefill_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def session(self) -> Session:
        return self.decoding.session


class SharedLoop:
    """Decodes questions, as many at once as there are drafters, all of one decoder.

    With `speculate_up_to`, a round of more requests than that drafts nothing. As a context manager
    it closes all sessions at the end.
    """

    def __init__(
        self,
        target: SharedTarget,
        drafters: Sequence[Drafter],
        questions: Iterable[Question],
        speculate_up_to: int | None = None,
    ) -> None:
        self.target = target
        self.idle = list(drafters)
        self.waiting = deque(enumerate(questions))
        self.speculate_up_to = speculate_up_to
        self.working: list[Place] = []
        self.generations: dict[int, Generation] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        for place in self.working:
            place.decoding.__exit__(*error)
        self.working = []

    @property
    def finished(self) -> bool:
        return not (self.waiting or self.working)

    @torch.inference_mode()
    def step(self) -> Round:
        """Let waiting requests in, run one round, and keep the generations of those that end."""
        seconds = 0.0
        while self.waiting and self.idle:
            seconds += self._start(*self.waiting.popleft())
            self._let_go()  # the prefill's token may be all of an answer
        began = perf_counter()
        trees = self._trees()
        tokens = self._scored(trees)
        self.target.synchronize()
        seconds += perf_counter() - began
        for place in self.working:
            place.seconds += seconds / len(self.working)
        self._let_go()
        return Round(seconds, tokens, sum(map(len, trees)))

    def _start(self, number: int, question: Question) -> float:
        """Open a request's session and begin; return the seconds after its prefill.

        A drafter may share the session that was opened last, so no other is opened in between.
        """
        began = perf_counter()
        prompt, sampler, limit = question
        decoding = Decoding(self.target, self.idle.pop(), sampler, prompt, limit)
        place = Place(number, decoding)
        self.working.append(place)
        scores = decoding.session.prefill(prompt)
        self.target.synchronize()
        ready = perf_counter()
        place.prefill_seconds = ready - began
        decoding.begin(scores)
        return perf_counter() - ready

    def _trees(self) -> list[Tree]:
        places = self.working
        if self.speculate_up_to is not None and len(places) > self.speculate_up_to:
            return [Tree.root(place.decoding.context.tokens[-1]) for place in places]
        for place in places:
            place.decoding.context.batch = len(places)
        return [place.decoding.propose() for place in places]

    def _scored(self, trees: Sequence[Tree]) -> dict[int, int]:
        """Score the trees together, verify each, and return the numbers of new tokens.

        Each request is charged an equal share of the forward.
        """
        began = perf_counter()
        scores = self.target.score_together([place.session for place in self.working], trees)
        seconds = (perf_counter() - began) / max(1, len(self.working))
        return {
            place.number: place.decoding.take(tree, own, seconds)
            for place, tree, own in zip(self.working, trees, scores, strict=True)
        }

    def _let_go(self) -> None:
        """Close what has ended; its drafter waits for the next request."""
        for place in [place for place in self.working if place.decoding.finished]:
            self.working.remove(place)
            decoding = place.decoding
            self.generations[place.number] = decoding.generation(
                place.prefill_seconds, place.seconds, forwards=len(decoding.committed)
            )
            self.idle.append(decoding.drafter)
            decoding.__exit__(None, None, None)
