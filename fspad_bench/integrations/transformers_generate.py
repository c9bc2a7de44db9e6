"""transformers' own greedy `generate`, plain and with prompt lookup, as foreign decoders.

    fspad-bench run --task gsm8k --temperature 0 --decoder \\
      fspad_bench.integrations.transformers_generate:StockGenerate

- They run a copy of the target's weights through the stock forward: sdpa attention, dynamic cache,
  stock linear layers.
- The target's own generation settings do not count, but for its stop ids: vanilla has no others.
- A row of theirs has an end-to-end speedup: the call is timed from outside. Their own clock, which
  starts when the first tokens are shown, and their steps stand in the record as claims. Prompt
  lookup shows the tokens of its whole first step at once, so this step counts as prefill there.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from fspad_bench.core.protocols import Generation, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.engine.stock import greedy_settings, stock_copy
from fspad_bench.engine.target import LARGEST_TREE, TransformersTarget
from fspad_bench.util.errors import BenchError


class StockGenerate:
    """`generate` without drafts.

    Greedy only: its sampled text draws on another random stream and could not be compared token
    for token.
    """

    def __init__(self, target: TransformersTarget) -> None:
        if target.team.size > 1:
            raise BenchError(
                "transformers' generate runs a model in one process, and this target's weights are "
                "shared among several",
                "load the target on one device, or spread its layers: cuda:0,cuda:1",
            )
        self.model = stock_copy(target.model)
        self.settings: dict[str, Any] = {}

    @torch.inference_mode()
    def generate(self, prompt: list[int], sampler: Sampler, limit: Limit) -> Generation:
        """Decode greedily. Raises BenchError at a temperature above 0."""
        if sampler.temperature:
            raise BenchError(f"{type(self).__name__} is greedy", "run it with --temperature 0")
        shown = ShownTokens()
        ids = torch.tensor([prompt], device=self.model.device)
        start = perf_counter()
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=greedy_settings(
                limit.max_new_tokens, limit.stop_ids, **self.settings
            ),
            streamer=shown,
        )
        end = perf_counter()
        tokens = output[0, len(prompt) :].tolist()
        committed = shown.counts[2:]  # after the prompt and the first tokens
        return Generation(
            tokens,
            prefill_seconds=shown.first - start,
            decode_seconds=end - shown.first,
            forwards=len(committed),
            committed=committed,
        )


class StockPromptLookup(StockGenerate):
    """`generate` with prompt lookup, which drafts `tokens` tokens after the last match.

    `tokens` is transformers' `prompt_lookup_num_tokens`.
    """

    def __init__(self, target: TransformersTarget, *, tokens: int = 10) -> None:
        if not 1 <= tokens < LARGEST_TREE:
            raise BenchError(f"tokens={tokens} is out of range", f"1 <= tokens < {LARGEST_TREE}")
        super().__init__(target)
        self.settings = {"prompt_lookup_num_tokens": tokens}


class ShownTokens:
    """A streamer that counts the tokens shown at once and times the first new ones.

    `generate` shows the prompt first.
    """

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.first = 0.0

    def put(self, tokens: Tensor) -> None:
        self.counts.append(tokens.numel())
        if len(self.counts) == 2:
            self.first = perf_counter()

    def end(self) -> None:
        pass
