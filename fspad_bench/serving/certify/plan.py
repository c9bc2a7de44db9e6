"""What is asked of both servers: settings of sampling, cells of the grid, and a plan's sizes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fspad_bench.serving.engine import Ask, SamplingSettings, depth_body
from fspad_bench.util.errors import BenchError, near

SERVED = "served"
PLAIN = "plain"
FIELDS = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "presence": float,
    "frequency": float,
    "repetition": float,
}
NAMES = {"temperature": "T", "top_p": "top-p", "top_k": "top-k", "min_p": "min-p"}
GREEDY = "greedy"
SAMPLING = (
    GREEDY,
    "temperature=1",
    "temperature=0.7",
    "temperature=1,top_p=0.95",
    "temperature=1,top_k=20",
    "temperature=1,top_k=20,top_p=0.95",
    "temperature=1,presence=0.5,frequency=0.5",
)
REPETITION = "temperature=1,repetition=1.3"  # where the other penalties cannot be asked for
HINT = "give greedy, or such as temperature=0.7,top_p=0.95"


@dataclass(frozen=True, kw_only=True)
class Sampling(SamplingSettings):
    """The settings of sampling of a cell or a probe."""

    @classmethod
    def parse(cls, text: str) -> Sampling:
        """Read `greedy` or `temperature=0.7,top_p=0.95`; a temperature not given is 1."""
        if text == GREEDY:
            return cls()
        values: dict[str, Any] = {"temperature": 1.0}
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            if name not in FIELDS:
                raise BenchError(f"unknown sampling parameter '{name}'", near(name, FIELDS))
            try:
                values[name] = FIELDS[name](value)
            except ValueError as error:
                raise BenchError(f"'{value}' is not a value of {name}", HINT) from error
        return cls(**values)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalised(self) -> bool:
        return (self.presence, self.frequency, self.repetition) != (0, 0, 1)

    @property
    def name(self) -> str:
        """Return what differs from the neutral settings: `T=1 top-k=20`."""
        neutral = asdict(Sampling())
        given = {key: value for key, value in asdict(self).items() if value != neutral[key]}
        return (
            " ".join(f"{NAMES.get(key, key)}={value:g}" for key, value in given.items()) or GREEDY
        )


def default_sampling(*unsupported: Sequence[str]) -> tuple[Sampling, ...]:
    """Return the settings of the default grid, but for those that a server does not support.

    Where it supports the penalty by repetition alone, that one takes the place of the others.
    """
    missing = [name for names in unsupported for name in names]
    every = [Sampling.parse(text) for text in SAMPLING]
    kept = [settings for settings in every if not settings.among(missing)]
    other = Sampling.parse(REPETITION)
    if any(settings.penalised for settings in kept) or other.among(missing):
        return tuple(kept)
    return (*kept, other)


@dataclass(frozen=True)
class Cell:
    """One combination of the sweeps; `depth` and `length` are None where they are not swept."""

    sampling: Sampling
    depth: int | None = None
    concurrency: int = 1
    length: int | None = None

    @property
    def name(self) -> str:
        parts = [] if self.depth is None else [f"depth {self.depth}"]
        parts += [f"{self.concurrency} at once"]
        parts += [] if self.length is None else [f"{self.length} tokens in"]
        return ", ".join([*parts, self.sampling.name])


@dataclass(frozen=True)
class Plan:
    """The sizes of a certification, and what switches speculation.

    - `rounds` of `each` answers a prompt and side, in each sampled cell; `max_tokens` an answer.
    - `depth_extra` is JSON in which N stands for the depth; it is merged into served requests.
    - `error` is the family-wise error of all tests of distributions together.
    - `tie` is the lead, in nats, below which another greedy token counts as rounding.
    """

    prompts: tuple[tuple[int, ...], ...]
    sampling: tuple[Sampling, ...] = tuple(map(Sampling.parse, SAMPLING))
    depths: tuple[int, ...] = ()
    depth_extra: str = ""
    concurrency: tuple[int, ...] = (8,)
    lengths: tuple[int, ...] = ()
    rounds: int = 16
    each: int = 8
    greedy_repeats: int = 2
    max_tokens: int = 48
    logprobs: int = 20
    error: float = 0.01
    tie: float = 0.25
    seeded: bool = False
    stop_early: bool = False
    seed: int = 0
    extra: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # by side

    def __post_init__(self) -> None:
        if not self.prompts:
            raise BenchError("no prompts", "give at least one")
        if self.depths:
            depth_body(self.depth_extra, self.depths[0])
        if not 0 < self.error < 1:
            raise BenchError(f"a family-wise error of {self.error:g}", "give such as 0.01")
        if min(self.lengths, default=1) < 1 or min(self.concurrency) < 1:
            raise BenchError("a prompt length or a concurrency below 1", "give 1 or more")

    def cells(self) -> list[Cell]:
        """Return the grid, all combinations of the sweeps."""
        depths: Sequence[int | None] = self.depths or [None]
        lengths: Sequence[int | None] = self.lengths or [None]
        grid = itertools.product(depths, self.concurrency, lengths, self.sampling)
        return [Cell(sampling, depth, c, length) for depth, c, length, sampling in grid]

    def prompts_of(self, cell: Cell) -> list[tuple[int, ...]]:
        """Return the prompts, each repeated or cut to the cell's length; its end is kept."""
        if cell.length is None:
            return list(self.prompts)
        copies = [prompt * -(-cell.length // len(prompt)) for prompt in self.prompts]
        return [tuple(prompt[-cell.length :]) for prompt in copies]

    def ask(
        self,
        side: str,
        cell: Cell,
        prompt: tuple[int, ...],
        *,
        sampling: Sampling | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
    ) -> Ask:
        """Return a request of this cell; `sampling` and `max_tokens` replace the plan's."""
        settings = asdict(sampling or cell.sampling)
        extra = dict(self.extra.get(side, {}))
        if side == SERVED and cell.depth is not None:
            extra |= depth_body(self.depth_extra, cell.depth)
        limit = self.max_tokens if max_tokens is None else max_tokens
        return Ask(prompt, limit, seed=seed, logprobs=self.logprobs, extra=extra, **settings)
