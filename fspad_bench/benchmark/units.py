"""The units of a run: one question of a task at one temperature, once a repeat.

All decoders take one turn each on a unit, and an interrupted run continues with the units that some
of them have not finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fspad_bench.benchmark import tasks
from fspad_bench.benchmark.shards import WHOLE, Shard
from fspad_bench.decoders.build import Decoder
from fspad_bench.util.errors import BenchError


class UnitName(NamedTuple):
    """A question in one of the repeats."""

    question: str
    repeat: int = 0


class Unit(NamedTuple):
    """The unit of interleaving: one question of a task at one temperature."""

    data: tasks.TaskData
    question: tasks.Question
    temperature: float
    repeat: int = 0

    @property
    def place(self) -> UnitName:
        return UnitName(self.question.id, self.repeat)

    @property
    def shown(self) -> str:
        again = f" repeat {self.repeat + 1}" if self.repeat else ""
        return f"{self.data.card.task} {self.question.id} T={self.temperature:g}{again}"


class Prompt(NamedTuple):
    """One turn of a unit. Generations under the same `round` were interleaved."""

    unit: Unit
    turn: int
    round: str
    tokens: list[int]


def units(
    data: Sequence[tasks.TaskData],
    temperatures: Sequence[float],
    repeats: int,
    shard: Shard = WHOLE,
) -> Iterator[Unit]:
    """Yield every unit of a shard; a repeat begins when the whole set before it is done."""
    for repeat in range(repeats):
        for task in data:
            for index, question in enumerate(task.questions):
                for temperature in temperatures if shard.has(index) else ():
                    yield Unit(task, question, temperature, repeat)


def check_scopes(
    decoders: Sequence[Decoder], temperatures: int, repeats: int, shard: Shard = WHOLE
) -> None:
    """Raise BenchError where a decoder that learns across prompts would see one twice, or a shard
    of them.
    """
    for decoder in decoders:
        if decoder.scope != "run":
            continue
        if temperatures > 1:
            raise BenchError(
                f"{decoder.label} learns across prompts: the next temperature would show it each "
                "of them again",
                "give one temperature, and the same command again for another",
            )
        if repeats > 1:
            raise BenchError(
                f"{decoder.label} learns across prompts: a repeat would show it each of them again",
                "leave --repeats out, and give the same command again for another record",
            )
        if shard.parts > 1:
            raise BenchError(
                f"{decoder.label} learns across prompts: a shard would show it a part of them",
                "measure all questions in one process, or let it start anew with each prompt",
            )
