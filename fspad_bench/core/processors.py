"""Logits processors: functions of a text and of the logits behind it, applied before a token is
chosen.

- A processor is called as transformers' are: `processor(input_ids [1, L], scores [1, V])` returns
  scores `[1, V]`, in float32 or wider, before temperature and cuts.
- Each node of a tree has a text of its own: the committed tokens and the node's path. Processors
  see that text, one node at a time, exactly as vanilla would show it to them. A penalty of the
  committed text alone would give other tokens than vanilla as soon as a draft is accepted.
- A rule reads few of a tree's nodes, so a node is processed when it is read (`NodeLogits`).
- A tree's texts are no single growing text: a processor must be a function of its two arguments,
  which is tested at the start of each generation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fspad_bench.core.tree import Tree
from fspad_bench.util.errors import BenchError

Processor = Callable[[Tensor, Tensor], Tensor]
ONLY_FUNCTIONS = "only a function of (input_ids, scores) can process the nodes of a tree"


class Processing(Protocol):
    """A sampler, which applies processors."""

    @property
    def processors(self) -> tuple[Processor, ...]: ...
    def adjust(self, logits: Tensor, text: Tensor, prompt_length: int) -> Tensor: ...


class OutputProcessor(ABC):
    """A processor that sees the output alone: its `input_ids` lack the prompt."""

    @abstractmethod
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor: ...


def wide(logits: Tensor) -> Tensor:
    """Return the logits in float32 at least, which is exact."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def process_row(
    processors: Sequence[Processor], logits: Tensor, text: Tensor, prompt_length: int
) -> Tensor:
    """Return the logits `[V]` that the processors make of those behind `text` `[L]`."""
    return _stages(processors, logits, text, prompt_length)[-1][0]


def _stages(
    processors: Sequence[Processor], logits: Tensor, text: Tensor, prompt_length: int
) -> list[Tensor]:
    """Return the scores `[1, V]` before the first processor and after each one."""
    stages = [wide(logits)[None]]
    ids = text[None]
    for processor in processors:
        first = prompt_length if isinstance(processor, OutputProcessor) else 0
        # a processor may write to what it is given: others see the text as it is
        scores = processor(ids[:, first:].clone(), stages[-1].clone())
        if not isinstance(scores, Tensor) or scores.shape != stages[0].shape:
            what = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise BenchError(
                f"the logits processor {name_of(processor)} returned {what}",
                f"it returns scores of shape {list(stages[0].shape)}",
            )
        stages.append(scores)
    return stages


def name_of(processor: Processor) -> str:
    """Return the name of a processor's class, or of the function that it is."""
    return getattr(processor, "__name__", type(processor).__name__)


class NodeLogits:
    """The processed logits `[N, V]` of a tree's nodes, each row made when it is first read.

    `committed` are all committed tokens, the tree's root the last of them.
    """

    def __init__(
        self,
        tree: Tree,
        logits: Tensor,
        sampler: Processing,
        committed: Sequence[int],
        prompt_length: int,
    ) -> None:
        self.tree = tree
        self.logits = logits
        self.sampler = sampler
        self.committed = torch.tensor(committed, device=logits.device)
        self.prompt_length = prompt_length
        self.rows: dict[int, Tensor] = {}

    @property
    def shape(self) -> torch.Size:
        return self.logits.shape

    @property
    def device(self) -> torch.device:
        return self.logits.device

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, node: int) -> Tensor:
        if node not in self.rows:
            text = self.text(node)
            self.rows[node] = self.sampler.adjust(self.logits[node], text, self.prompt_length)
        return self.rows[node]

    def text(self, node: int) -> Tensor:
        """Return the text that ends in a node: the committed tokens and its path."""
        path: list[int] = []
        while node > 0:
            path.append(self.tree.tokens[node])
            node = self.tree.parents[node]
        return torch.cat([self.committed, self.committed.new_tensor(path[::-1])])

    def whole(self) -> Tensor:
        """Return all rows as one tensor."""
        return torch.stack([self[node] for node in range(len(self))])


def node_logits(
    tree: Tree,
    logits: Tensor,
    sampler: Processing,
    committed: Sequence[int],
    prompt_length: int,
) -> Tensor | NodeLogits:
    """Return the logits of a tree's nodes as the processors leave them: as they are without any."""
    if not sampler.processors:
        return logits
    return NodeLogits(tree, logits, sampler, committed, prompt_length)


def first_logits(logits: Tensor, sampler: Processing, prompt: Sequence[int]) -> Tensor:
    """Return the logits `[V]` behind the prompt as the processors leave them."""
    if not sampler.processors:
        return logits
    return sampler.adjust(logits, torch.tensor(prompt, device=logits.device), len(prompt))


def output_logits(
    logits: Tensor, sampler: Processing, prompt: Sequence[int], output: Sequence[int]
) -> Tensor:
    """Return the logits `[n, V]` before each token of an output as the processors leave them."""
    if not sampler.processors:
        return logits
    text = torch.tensor([*prompt, *output], device=logits.device)
    start = len(prompt)
    rows = [sampler.adjust(row, text[: start + i], start) for i, row in enumerate(logits)]
    return torch.stack(rows)


def check_functions(
    processors: Sequence[Processor], logits: Tensor, prompt: Sequence[int], token: int
) -> None:
    """Raise BenchError naming a processor that is no function of its arguments.

    Each is shown the prompt, the prompt with the first token, and the prompt again, where it must
    repeat itself.
    """
    text = torch.tensor([*prompt, token], device=logits.device)
    start = len(prompt)
    try:
        first = _stages(processors, logits, text[:start], start)
        _stages(processors, logits, text, start)
        again = _stages(processors, logits, text[:start], start)
    except Exception as error:
        names = ", ".join(map(name_of, processors))
        raise BenchError(
            f"a logits processor fails when it is asked again ({names}): {error}", ONLY_FUNCTIONS
        ) from error
    for processor, before, after in zip(processors, first[1:], again[1:], strict=True):
        if not torch.equal(before, after):
            raise BenchError(
                f"the logits processor {name_of(processor)} keeps state between its calls, "
                "or draws at random",
                ONLY_FUNCTIONS,
            )
