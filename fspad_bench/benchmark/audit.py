"""Audits of pairs of outputs that differ: rounding at a near tie, or another distribution?

- Every emitted token of both outputs is re-scored, teacher-forced, in one float32 forward
  (float64 for a small target). Nothing here goes through the decoder.
- With z = logit + T * noise, the emitted token y should lead. Its *regret* is the least error e
  of the logits that explains it: y's margin to each cut is at least -e, and z_y + e >= z_w - e
  for every w whose own margin exceeds e.
- A token's *margin* is the shift of its own logit that crosses the cut.
- Vanilla's *margin error* is the error that rounding made in vanilla's own leads over the
  runners-up, in the same unit, measured by running vanilla again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fspad_bench.benchmark.stats import agreement
from fspad_bench.core.loop import generate
from fspad_bench.core.processors import output_logits
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.engine.team import Precise

SMALL = 20_000_000  # parameters; a smaller target is re-scored in float64
BISECTIONS = 60
BANNED = 1e9  # logits; no rounding explains it


class Finding(NamedTuple):
    """`divergence` is the first index where the outputs differ.

    Regrets are one a token, in logits.
    """

    divergence: int
    decoder_regrets: list[float]
    vanilla_regrets: list[float]
    margin_error: float


class Lead(NamedTuple):
    """A choice of vanilla's, the runner-up, and the gap between them."""

    token: int
    runner_up: int
    gap: float


class Question(NamedTuple):
    """A prompt with its noise: audits of the same question share what is known of it."""

    sampler: Sampler
    prompt: list[int]
    limit: Limit


class Recorder:
    """A sampler that records how narrow each of its choices was."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.temperature = sampler.temperature
        self.greedy = sampler.greedy
        self.processors = sampler.processors
        self.adjust = sampler.adjust
        self.noise = sampler.noise
        self.distribution = sampler.distribution
        self.dice = sampler.dice
        self.leads: list[Lead] = []

    def next(self, logits: Tensor, position: int) -> int:
        token = self.sampler.next(logits, position)
        z, tokens = perturbed(logits, position, self.sampler)
        z = z.masked_fill(tokens == token, float("-inf"))
        if len(tokens) > 1:
            second = int(tokens[z.argmax()])
            lead = gap(logits, position, self.sampler, token, second)
            self.leads.append(Lead(token, second, lead))
        else:
            self.leads.append(Lead(token, token, 0.0))
        return token


class Auditor:
    """Re-scores outputs of one target, on a precise copy of its weights that is made when first
    needed.

    Vanilla's margin error and the regrets of an output are kept until the next question: several
    decoders diverge from the same vanilla, often to the same output.
    """

    def __init__(self, target: TransformersTarget) -> None:
        self.target = target
        self.precise: Precise | None = None
        self.question: Question | None = None
        self.known_regrets: dict[tuple[int, ...], list[float]] = {}
        self.known_margin_error: float | None = None

    def audit(
        self,
        sampler: Sampler,
        prompt: list[int],
        vanilla: list[int],
        decoder: list[int],
        limit: Limit,
    ) -> Finding:
        """Compare two outputs of the same prompt and noise.

        Raises torch.OutOfMemoryError where the precise copy does not fit.
        """
        question = Question(sampler, prompt, limit)
        if self.question != question:
            self.question = question
            self.known_regrets = {}
            self.known_margin_error = None
        if self.known_margin_error is None:
            self.known_margin_error = self._margin_error(question, vanilla)
        return Finding(
            divergence=agreement(vanilla, decoder),
            decoder_regrets=self._regrets(question, decoder),
            vanilla_regrets=self._regrets(question, vanilla),
            margin_error=self.known_margin_error,
        )

    def _regrets(self, question: Question, output: list[int]) -> list[float]:
        key = tuple(output)
        if key not in self.known_regrets:
            logits = self._rescore(question, output)
            start = len(question.prompt)
            self.known_regrets[key] = regrets(logits, output, start, question.sampler)
        return self.known_regrets[key]

    def _margin_error(self, question: Question, vanilla: list[int]) -> float:
        """Return the largest error in vanilla's own leads, over the steps that a second run
        repeats.
        """
        sampler, prompt, limit = question
        recorder = Recorder(sampler)
        logits = self._rescore(question, vanilla)
        again = generate(self.target, Vanilla(self.target), recorder, prompt, limit).tokens
        errors = [0.0]
        for i, lead in enumerate(recorder.leads[: agreement(again, vanilla)]):
            exact = gap(logits[i], len(prompt) + i, sampler, lead.token, lead.runner_up)
            errors.append(abs(lead.gap - exact) / 2)
        return max(errors)

    @torch.inference_mode()
    def _rescore(self, question: Question, output: list[int]) -> Tensor:
        """Return the precise logits `[n, V]` before each token of `output`, processed."""
        prompt = question.prompt
        if self.precise is None:
            parameters = sum(p.numel() for p in self.target.model.parameters())
            dtype = torch.float64 if parameters < SMALL else torch.float32
            self.precise = self.target.team.precise(self.target.model, dtype)
        logits = self.precise.logits([*prompt, *output[:-1]], len(prompt) - 1)
        return output_logits(logits, question.sampler, prompt, output)


def perturbed(logits: Tensor, position: int, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """Return z = logit + T * noise of the tokens that the cuts keep, and their ids, `[K]` each."""
    if not sampler.temperature:
        return logits, torch.arange(len(logits), device=logits.device)
    scores, tokens = sampler.process(logits)
    return (scores + sampler.noise(position, tokens)) * sampler.temperature, tokens


def gap(logits: Tensor, position: int, sampler: Sampler, first: int, second: int) -> float:
    """Return z of `first` minus z of `second`, cuts aside."""
    pair = torch.tensor([first, second], device=logits.device)
    z = logits[pair].double() + sampler.temperature * sampler.noise(position, pair).double()
    return float(z[0] - z[1])


def regrets(logits: Tensor, tokens: Sequence[int], start: int, sampler: Sampler) -> list[float]:
    """Return the regret of each token, given the precise logits `[n, V]` before it.

    `start` is the position of the first token.
    """
    return [
        regret(row, token, start + i, sampler)
        for i, (row, token) in enumerate(zip(logits, tokens, strict=True))
    ]


def regret(logits: Tensor, token: int, position: int, sampler: Sampler) -> float:
    """Return the least e that explains `token` after `logits` `[V]`.

    e = max(0, -margin_y, max over w of min(margin_w, (z_w - z_y) / 2)), and `BANNED` of a token
    that a logits processor forbids, where it leaves another.
    """
    if logits[token] == -math.inf and torch.isfinite(logits.max()):
        return BANNED
    every = torch.arange(len(logits), device=logits.device)
    z = logits.double()
    if sampler.temperature:
        z = z + sampler.temperature * sampler.noise(position, every).double()
    if not sampler.temperature or not is_cut(sampler):
        return float((z.max() - z[token]) / 2)
    kept = sampler.process(logits.double())[1]  # a token that is cut has no margin
    ahead = kept[z[kept] > z[token]]
    own, *others = margins(logits, [token, *ahead.tolist()], sampler)
    halves = ((z[ahead] - z[token]) / 2).tolist()
    return max(0.0, -own, *(min(margin, half) for margin, half in zip(others, halves, strict=True)))


def is_cut(sampler: Sampler) -> bool:
    return bool(sampler.top_p < 1 or sampler.top_k or sampler.min_p)


def margins(logits: Tensor, tokens: Sequence[int], sampler: Sampler) -> list[float]:
    """Return how far each token's logit can fall before the cuts drop it.

    A margin is negative where the token is cut: by how far its logit must rise to be kept.
    """
    scores = logits.double().cpu().numpy() / sampler.temperature
    keep = sampler.top_k if 0 < sampler.top_k < len(scores) else len(scores)
    order = np.sort(scores)[::-1]
    low = scores[np.isfinite(scores)].min() - 50.0  # a processor may ban tokens: -inf
    high = scores.max() + 50.0
    distances = []
    for token in tokens:
        others = np.delete(order, np.searchsorted(-order, -scores[token]))
        least = _least_kept(others, order[0], keep, sampler.top_p, low, high)
        if sampler.min_p and len(others):
            least = max(least, float(others[0]) + math.log(sampler.min_p))
        distances.append(float(scores[token] - least) * sampler.temperature)
    return distances


def _least_kept(
    others: np.ndarray, top: float, keep: int, top_p: float, low: float, high: float
) -> float:
    """Return the lowest score at which the cuts keep a token beside `others`, by bisection.

    `others` are the other tokens' scores in falling order, `keep` is the number that top-k keeps.
    `top` scales the exponentials, so that none overflows.
    """
    mass = np.concatenate([[0.0], np.exp(others - top).cumsum()])
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = np.searchsorted(-others, -middle)
        total = mass[keep - 1] + np.exp(middle - top)
        if above < keep and (top_p == 1 or mass[above] < top_p * total):
            high = middle
        else:
            low = middle
    return high
