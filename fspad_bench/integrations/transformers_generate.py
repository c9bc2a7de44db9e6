"""transformers' own greedy `generate`, plain and with its prompt lookup, as foreign decoders to hold ours against.

    fspad-bench run --decoder fspad_bench.integrations.transformers_generate:StockGenerate --task gsm8k
    fspad-bench run --decoder prompt_lookup,fspad_bench.integrations.transformers_generate:StockPromptLookup --task rag

They run a copy of the target's weights through the stock forward: sdpa attention, dynamic cache, stock linear layers.
Their decode clock starts with the first tokens that they show. Prompt lookup shows those of its whole first step, whose
time is thus the prefill's: to its advantage, by less than a step.
"""

from __future__ import annotations

import copy
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from fspad_bench.core.loop import Generation, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.errors import BenchError


class StockGenerate:
    """Greedy only: its sampled text draws on another random stream and could not be compared token for token."""

    def __init__(self, target: TransformersTarget) -> None:
        self.model = copy.deepcopy(target.model)
        self.model.set_attn_implementation("sdpa")
        self.settings: dict[str, Any] = {}

    @torch.inference_mode()
    def generate(self, prompt: list[int], sampler: Sampler, limit: Limit) -> Generation:
        """Raises BenchError at a temperature above 0."""
        if sampler.temperature:
            raise BenchError(f"{type(self).__name__} is greedy", "run it with --temperature 0")
        shown = Shown()
        ids = torch.tensor([prompt], device=self.model.device)
        start = perf_counter()
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit.max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=sorted(limit.stop_ids) or [-1],
            streamer=shown,
            **self.settings,
        )
        end = perf_counter()
        tokens = out[0, len(prompt) :].tolist()
        rounds = shown.counts[2:]
        return Generation(tokens, shown.first - start, end - shown.first, len(rounds), rounds)


class StockPromptLookup(StockGenerate):
    """Up to `tokens` of what followed the prompt's last match (transformers' `prompt_lookup_num_tokens`)."""

    def __init__(self, target: TransformersTarget, *, tokens: int = 10) -> None:
        if tokens < 1:
            raise BenchError(f"tokens={tokens} is out of range", "at least 1")
        super().__init__(target)
        self.settings = {"prompt_lookup_num_tokens": tokens}


class Shown:
    """A streamer that notes how many tokens came at once, the prompt before them, and when the first new ones did."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.first = 0.0

    def put(self, tokens: Tensor) -> None:
        self.counts.append(tokens.numel())
        if len(self.counts) == 2:
            self.first = perf_counter()

    def end(self) -> None:
        pass
