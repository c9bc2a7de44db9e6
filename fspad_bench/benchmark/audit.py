"""The audit of a pair of outputs that differ: was it rounding at a near tie, or another law?

Every emitted token of both is re-scored, teacher-forced, in one float32 forward (float64 for a small target). With
z = logit + T * noise the emitted token y should lead. Its *regret* is the least error e of the logits that explains
it: its margin to each cut is at least -e, and z_y + e >= z_w - e for every w whose own margin exceeds e. A token's
margin is the shift of its own logit that crosses the cut. Vanilla's *margin error* is what rounding did to its own
lead over the runner-up, in the same unit, measured by running it again. Nothing here goes through the decoder.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fspad_bench.benchmark.stats import agreement
from fspad_bench.core.loop import Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.target import TransformersTarget

SMALL = 20_000_000
BISECTIONS = 60


class Finding(NamedTuple):
    """`divergence` is the first index where the outputs differ; regrets are one a token, in logits."""

    divergence: int
    decoder_regrets: list[float]
    vanilla_regrets: list[float]
    margin_error: float


class Lead(NamedTuple):
    """A choice of vanilla's, who came second, and by how much."""

    token: int
    runner_up: int
    gap: float


class Recorder:
    """A sampler that remembers how narrow each of its choices was."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.leads = []

    def next(self, logits: Tensor, position: int) -> int:
        token = self.sampler.next(logits, position)
        z, tokens = perturbed(logits, position, self.sampler)
        z = z.masked_fill(tokens == token, float("-inf"))
        if len(tokens) > 1:
            second = int(tokens[z.argmax()])
            self.leads.append(
                Lead(token, second, gap(logits, position, self.sampler, token, second))
            )
        else:
            self.leads.append(Lead(token, token, 0.0))
        return token


class Auditor:
    """Re-scores for one target; the precise copy of its weights is made on first need.

    What belongs to a prompt and its noise (vanilla's margin error, the regrets of an output) is kept until the next
    prompt: several decoders that part from the same vanilla, often in the same words, share it.
    """

    def __init__(self, target: TransformersTarget) -> None:
        self.target = target
        self.model = None
        self.about = None
        self.known = {}

    def audit(
        self,
        sampler: Sampler,
        prompt: list[int],
        vanilla: list[int],
        decoder: list[int],
        limit: Limit,
    ) -> Finding:
        """Compare two outputs of the same prompt and noise. Raises torch.OutOfMemoryError where no copy fits."""
        if self.about != (sampler, prompt, limit):
            self.about = (sampler, prompt, limit)
            self.known = {}
        return Finding(
            divergence=agreement(vanilla, decoder),
            decoder_regrets=self._regrets(decoder),
            vanilla_regrets=self._regrets(vanilla),
            margin_error=self._margin_error(vanilla),
        )

    def _regrets(self, output: list[int]) -> list[float]:
        sampler, prompt, _ = self.about
        if (key := tuple(output)) not in self.known:
            self.known[key] = regrets(self._rescore(prompt, output), output, len(prompt), sampler)
        return self.known[key]

    def _margin_error(self, vanilla: list[int]) -> float:
        """What rounding did to vanilla's own leads, at most, over the steps that running it again repeats."""
        if "margin error" not in self.known:
            sampler, prompt, limit = self.about
            recorder = Recorder(sampler)
            exact = self._rescore(prompt, vanilla)
            again = generate(self.target, Vanilla(self.target), recorder, prompt, limit).tokens
            leads = recorder.leads[: agreement(again, vanilla)]
            precise = [
                gap(exact[i], len(prompt) + i, sampler, x.token, x.runner_up)
                for i, x in enumerate(leads)
            ]
            self.known["margin error"] = max(
                (abs(lead.gap - z) / 2 for lead, z in zip(leads, precise, strict=True)), default=0.0
            )
        return self.known["margin error"]

    @torch.inference_mode()
    def _rescore(self, prompt: list[int], output: list[int]) -> Tensor:
        """The precise logits before each token of `output`, `[n, V]`."""
        if self.model is None:
            small = sum(p.numel() for p in self.target.model.parameters()) < SMALL
            self.model = copy.deepcopy(self.target.model).to(
                torch.float64 if small else torch.float32
            )
        ids = torch.tensor([[*prompt, *output[:-1]]], device=self.target.device)
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        return self.model.get_output_embeddings()(hidden[len(prompt) - 1 :])


def perturbed(logits: Tensor, position: int, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """z = logit + T * noise of the tokens that the cuts leave, and their ids, `[K]` each."""
    if not sampler.temperature:
        return logits, torch.arange(len(logits), device=logits.device)
    scores, tokens = sampler.process(logits)
    return (scores + sampler.noise(position, tokens)) * sampler.temperature, tokens


def gap(logits: Tensor, position: int, sampler: Sampler, first: int, second: int) -> float:
    """z of `first` minus z of `second`, cuts aside."""
    pair = torch.tensor([first, second], device=logits.device)
    z = logits[pair].double() + sampler.temperature * sampler.noise(position, pair).double()
    return float(z[0] - z[1])


def regrets(logits: Tensor, tokens: Sequence[int], start: int, sampler: Sampler) -> list[float]:
    """The regret of each token, given the precise logits `[n, V]` before it; `start` is the first one's position."""
    return [
        regret(row, token, start + i, sampler)
        for i, (row, token) in enumerate(zip(logits, tokens, strict=True))
    ]


def regret(logits: Tensor, token: int, position: int, sampler: Sampler) -> float:
    """The least e that explains `token`: max(0, -margin_y, max over w of min(margin_w, (z_w - z_y) / 2))."""
    every = torch.arange(len(logits), device=logits.device)
    z = logits.double()
    if sampler.temperature:
        z = z + sampler.temperature * sampler.noise(position, every).double()
    if not sampler.temperature or (sampler.top_p == 1 and not sampler.top_k):
        return float((z.max() - z[token]) / 2)
    kept = sampler.process(logits.double())[1]  # what is cut has no margin to spend
    ahead = kept[z[kept] > z[token]]
    own, *others = margins(logits, [token, *ahead.tolist()], sampler)
    halves = ((z[ahead] - z[token]) / 2).tolist()
    return max(0.0, -own, *(min(margin, half) for margin, half in zip(others, halves, strict=True)))


def margins(logits: Tensor, tokens: Sequence[int], sampler: Sampler) -> list[float]:
    """How far each token's logit can fall before the cuts drop it; negative by how far it must rise to be kept."""
    scores = logits.double().cpu().numpy() / sampler.temperature
    keep = sampler.top_k if 0 < sampler.top_k < len(scores) else len(scores)
    order = np.sort(scores)[::-1]
    found = []
    for token in tokens:
        others = np.delete(order, np.searchsorted(-order, -scores[token]))
        mass = np.concatenate([[0.0], np.exp(others - order[0]).cumsum()])
        low = scores.min() - 50.0
        high = scores.max() + 50.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            above = np.searchsorted(-others, -middle)
            total = mass[keep - 1] + np.exp(middle - order[0])
            kept = above < keep and (sampler.top_p == 1 or mass[above] < sampler.top_p * total)
            low, high = (low, middle) if kept else (middle, high)
        found.append(float(scores[token] - high) * sampler.temperature)
    return found
