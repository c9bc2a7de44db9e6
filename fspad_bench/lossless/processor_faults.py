"""Mistakes in where logits processors look, and when: those of published engines.

Vanilla's tree of one node cannot show them: they concern the nodes behind its root, or the order of
processors and temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from fspad_bench.core.processors import NodeLogits
from fspad_bench.core.verification import Chooser
from fspad_bench.lossless.mutations import Mutation, Patch

PENALTIES = ("identity penalties", "exact distribution T=0.6 penalties")
PLAIN = ("identity greedy", "identity T=1")
RIGHT_TEXT = NodeLogits.text
RIGHT_ROW = NodeLogits.__getitem__


def committed_text_alone(self: NodeLogits, node: int) -> Tensor:
    return self.committed  # wrong: the tokens of the node's own path are not in it


def after_the_temperature(self: NodeLogits, node: int) -> Tensor:
    temperature = cast(Chooser, self.sampler).temperature or 1.0
    scores = self.logits[node] / temperature  # wrong: what is subtracted now weighs more, or less
    return self.sampler.adjust(scores, self.text(node), self.prompt_length) * temperature


def bonus_not_processed(self: NodeLogits, node: int) -> Tensor:
    if self.tree.offspring[node] or not node:
        return RIGHT_ROW(self, node)
    return self.logits[node]  # wrong: the token after the last draft escapes


def processor_fault(name: str, right: Callable[..., Any], wrong: Callable[..., Any]) -> Mutation:
    fault = Patch(NodeLogits, right, wrong)
    return Mutation(name, fault, caught=PENALTIES, blind=PLAIN, unreached=PLAIN)


PROCESSOR_FAULTS = [
    processor_fault("penalties of the committed text alone", RIGHT_TEXT, committed_text_alone),
    processor_fault("penalties after the temperature", RIGHT_ROW, after_the_temperature),
    processor_fault("bonus token without the penalties", RIGHT_ROW, bonus_not_processed),
]
