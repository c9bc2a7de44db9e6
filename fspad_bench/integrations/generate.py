"""transformers' own greedy `generate` as a foreign decoder, to hold our vanilla against.

    fspad-bench run --decoder fspad_bench.integrations.generate:StockGenerate --task gsm8k

It runs a copy of the target's weights through the stock forward: sdpa attention, dynamic cache, stock linear layers.
Its decode clock starts with the first token, as ours does.
"""

from __future__ import annotations

import copy
from time import perf_counter

import torch
from torch import Tensor

from fspad_bench.decoding import Generation, Limit
from fspad_bench.errors import BenchError
from fspad_bench.sampling import Sampler
from fspad_bench.target import TransformersTarget


class StockGenerate:
    """Greedy only: its sampled text draws on another random stream and could not be compared token for token."""

    def __init__(self, target: TransformersTarget) -> None:
        self.model = copy.deepcopy(target.model)
        self.model.set_attn_implementation("sdpa")

    @torch.inference_mode()
    def generate(self, prompt: list[int], sampler: Sampler, limit: Limit) -> Generation:
        """Raises BenchError at a temperature above 0."""
        if sampler.temperature:
            raise BenchError("StockGenerate is greedy", "run it with --temperature 0")
        clock, ids = FirstToken(), torch.tensor([prompt], device=self.model.device)
        start = perf_counter()
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit.max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=sorted(limit.stop_ids) or [-1],
            streamer=clock,
        )
        end, tokens = perf_counter(), out[0, len(prompt) :].tolist()
        return Generation(tokens, clock.first - start, end - clock.first, len(tokens) - 1, [1] * (len(tokens) - 1))


class FirstToken:
    """A streamer that notes when the first new token came; transformers shows it the prompt before."""

    def __init__(self) -> None:
        self.shown, self.first = 0, 0.0

    def put(self, tokens: Tensor) -> None:
        self.shown += 1
        if self.shown == 2:
            self.first = perf_counter()

    def end(self) -> None:
        pass
