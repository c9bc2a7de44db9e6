"""The penalties that users know by name, as logits processors.

- Repetition and n-grams are transformers' own processors. They see the prompt and the output.
- Presence and frequency are those of OpenAI's API, as served engines compute them: the output
  alone counts, and the penalty is subtracted.
- They come in this order: repetition, n-grams, presence and frequency.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from fspad_bench.core.processors import OutputProcessor, Processor
from fspad_bench.util.errors import BenchError

LARGEST = 1e6  # far beyond it a logit overflows float32
WHOLE = ("no_repeat_ngram_size",)
RANGES = {
    "repetition_penalty": (1 / LARGEST, LARGEST),
    "presence_penalty": (-LARGEST, LARGEST),
    "frequency_penalty": (-LARGEST, LARGEST),
    "no_repeat_ngram_size": (0, LARGEST),
}


@dataclass(frozen=True)
class CountPenalty(OutputProcessor):
    """Lower each token's logit by `presence` if the output holds it, and by `frequency` each time
    that it does.
    """

    presence: float
    frequency: float

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        counts = torch.zeros_like(scores)
        counts.scatter_add_(1, input_ids, torch.ones_like(input_ids, dtype=scores.dtype))
        return scores - self.presence * (counts > 0) - self.frequency * counts


@dataclass(frozen=True)
class Penalties:
    """The settings. `repetition_penalty` 1 and 0 elsewhere change nothing."""

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        for own in fields(self):
            self._check(own.name)

    def _check(self, name: str) -> None:
        low, high = RANGES[name]
        value = getattr(self, name)
        if not low <= value <= high or (name in WHOLE and value != int(value)):
            shown = name.replace("_", "-")
            kind = "a whole number" if name in WHOLE else "a number"
            raise BenchError(
                f"{shown} {value} is out of range", f"it is {kind} from {low:g} to {high:g}"
            )

    @cached_property
    def processors(self) -> tuple[Processor, ...]:
        """The processors, none for a setting that changes nothing."""
        chosen: list[Processor] = []
        if self.repetition_penalty != 1:
            chosen.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.no_repeat_ngram_size:
            chosen.append(NoRepeatNGramLogitsProcessor(int(self.no_repeat_ngram_size)))
        if self.presence_penalty or self.frequency_penalty:
            chosen.append(CountPenalty(self.presence_penalty, self.frequency_penalty))
        return tuple(chosen)
