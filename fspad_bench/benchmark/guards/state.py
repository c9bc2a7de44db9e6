"""Whether a decoder that claims to start anew with each prompt does.

Its first prompts are asked again at the end, in another order. With the same noise it must propose
as many tokens and have as many accepted at every step; if not, something outlived a generation.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from fspad_bench.benchmark.record import VANILLA, Sample
from fspad_bench.core.protocols import Generation, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.build import Decoder
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.util.memory import is_out_of_memory

ASKED = 3  # prompts of each decoder


class Asked(NamedTuple):
    """A prompt with its noise, and the steps that a decoder took on it."""

    sampler: Sampler
    prompt: list[int]
    limit: Limit
    steps: list[tuple[int, int]]


class StateGuard:
    """Remembers the steps that each decoder took on its first prompts."""

    def __init__(self, target: TransformersTarget) -> None:
        self.target = target
        self.asked: dict[str, list[Asked]] = defaultdict(list)

    def has_room(self, decoder: Decoder) -> bool:
        return len(self.asked[decoder.label]) < ASKED

    def note(
        self,
        decoder: Decoder,
        sampler: Sampler,
        prompt: list[int],
        limit: Limit,
        made: Generation | Sample,
    ) -> None:
        """Remember the steps of a timed generation, while there are fewer than `ASKED`."""
        if starts_anew(decoder) and self.has_room(decoder):
            self.asked[decoder.label].append(Asked(sampler, prompt, limit, steps(made)))

    def differing(self, decoder: Decoder) -> int:
        """Ask again, in the opposite order: return how many prompts got other steps."""
        asked = self.asked.pop(decoder.label, [])
        return sum(self._again(decoder, question) != question.steps for question in asked[::-1])

    def _again(self, decoder: Decoder, asked: Asked) -> list[tuple[int, int]]:
        """Return the steps of now; none where it fails, which it did not do before.

        A lack of memory tells nothing of a decoder's state.
        """
        try:
            return steps(decoder.generate(self.target, asked.sampler, asked.prompt, asked.limit))
        except Exception as error:
            return asked.steps if is_out_of_memory(error) else []


def starts_anew(decoder: Decoder) -> bool:
    """Whether a decoder says that it starts anew.

    Vanilla drafts nothing, and the steps of an engine are not seen.
    """
    drafts = decoder.drafter is not None and decoder.label != VANILLA
    return drafts and decoder.scope == "prompt"


def steps(generation: Generation | Sample) -> list[tuple[int, int]]:
    """Return (drafted, committed) of every step."""
    return list(zip(generation.drafted, generation.committed, strict=True))
