"""The proofs of the sampler and of vanilla, on which every identity check rests.

- The noise is finite for every hash and yields the distribution it should.
- The processed distribution is that of transformers' own warpers.
- Greedy decoding equals `transformers.generate`, but for near ties in low precisions.

PIT of the decoders on the target at hand (`distribution`) completes them: those verified by `match`
have vanilla's tokens.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fspad_bench.benchmark.audit import Auditor
from fspad_bench.benchmark.uniform import ALPHA
from fspad_bench.core import sampling
from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.penalties import Penalties
from fspad_bench.engine.stock import greedy_settings, stock_copy
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless.checks import ELSEWHERE, Check, worst_of
from fspad_bench.lossless.distribution import draws_needed, g_test
from fspad_bench.lossless.oracle import Distribution
from fspad_bench.lossless.rounding import is_precise

OUTCOMES = 16
BLOCK = 10_000
EDGE = 4096  # hashes at either end of the scale
SETTINGS = [
    Sampler(0.3),
    Sampler(1.0, top_p=0.9),
    Sampler(0.7, top_k=50),
    Sampler(1.5, top_k=20, top_p=0.8),
    Sampler(1.0, top_p=0.3),
    Sampler(1.0, min_p=0.05),
    Sampler(1.5, top_k=50, top_p=0.95, min_p=0.2),
]
PENALTIES = Penalties(repetition_penalty=1.5, no_repeat_ngram_size=2)
SPREADS = (1.0, 4.0, 12.0)
WARPER_BOUND = 1e-12


def check_sampler(draws: int = 10_000_000) -> list[Check]:
    """Check the noise, over this many draws, and the processed distribution."""
    return [_check_finite(), _check_noise(draws), check_warpers()]


def noise_is_finite() -> bool:
    """Return whether the noise is finite at both ends of the hashes, where it may overflow."""
    edge = torch.arange(EDGE)
    words = torch.cat([edge, 2**32 - 1 - edge])
    signed = torch.where(words < 2**31, words, words - 2**32).to(torch.int32)
    return bool(sampling.gumbel(signed).isfinite().all())


def _check_finite() -> Check:
    figure = f"{2 * EDGE:,} hashes at the ends"
    return Check.of("noise is finite", "sampler", noise_is_finite(), figure, "all")


def _check_noise(draws: int) -> Check:
    """Run the G-test on argmax(log p + noise) over 16 outcomes.

    There are draws / 10^4 positions with 10^4 disjoint runs of token ids each.
    """
    p = torch.arange(1, OUTCOMES + 1, dtype=torch.float64).pow(2)
    p = p / p.sum()
    key = Sampler(1.0, stream="law").key
    counts = torch.zeros(OUTCOMES, dtype=torch.int64)
    tokens = torch.arange(BLOCK * OUTCOMES)
    for position in range(draws // BLOCK):
        noise = sampling.gumbel(sampling.hash32(key, position, tokens)).reshape(BLOCK, OUTCOMES)
        counts += torch.bincount((p.log() + noise).argmax(1), minlength=OUTCOMES)
    expected: Distribution = {(i,): float(x) for i, x in enumerate(p)}
    p_value = g_test(expected, Counter({(i,): int(n) for i, n in enumerate(counts)}))
    detectable = (draws_needed(OUTCOMES, 1.0) / draws) ** 0.5
    figure = f"p {p_value:.2g} of {draws:.0e} draws: TV {detectable:.1g} detectable with 99%"
    bound = f"p {ALPHA:.0e}"
    return Check.of("noise distribution", "sampler", p_value >= ALPHA, figure, bound)


def check_warpers() -> Check:
    """Compare processed distributions with those of transformers' warpers, without ties."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for setting in SETTINGS:
        for spread in SPREADS:
            logits = torch.randn(2000, generator=generator, dtype=torch.float64) * spread
            ours = setting.distribution(logits)
            difference = float((ours - _warped(logits, setting)).abs().max())
            worst = worst_of([worst, difference])
    figure = f"{worst:.1e} off transformers' warpers"
    bound = f"{WARPER_BOUND:.0e}"
    return Check.of("processed distribution", "sampler", worst <= WARPER_BOUND, figure, bound)


def _warped(logits: Tensor, sampler: Sampler) -> Tensor:
    """Return transformers' processed distribution of logits `[V]`."""
    ids = torch.zeros(1, 0, dtype=torch.long)  # the warpers do not read them
    row = TemperatureLogitsWarper(sampler.temperature)(ids, logits[None])
    row = TopKLogitsWarper(sampler.top_k)(ids, row) if sampler.top_k else row
    row = TopPLogitsWarper(sampler.top_p)(ids, row) if sampler.top_p < 1 else row
    row = MinPLogitsWarper(sampler.min_p)(ids, row) if sampler.min_p else row
    return row[0].softmax(0)


@torch.inference_mode()
def check_greedy(
    target: TransformersTarget,
    prompts: list[list[int]],
    tokens: int,
    penalties: Penalties | None = None,
) -> Check:
    """Compare vanilla at T = 0 with `transformers.generate`, on its own attention and cache.

    `penalties` are those that transformers has too: repetition and n-grams. In a low precision two
    forwards round in their own ways: where texts differ, an audit must explain vanilla's.
    """
    subject = "vanilla, penalties" if penalties else "vanilla"
    if target.team.size > 1:
        figure = "generate runs a model in one process: certify the target on one device"
        return Check("greedy is generate", subject, ELSEWHERE, figure)
    settings = penalties or Penalties()
    sampler = Sampler(processors=settings.processors)
    model = stock_copy(target.model)
    limit = Limit(tokens, target.stop_ids)
    auditor = Auditor(target)
    equal = 0
    ties = 0
    for prompt in prompts:
        ours = generate(target, Vanilla(target), sampler, prompt, limit).tokens
        if ours == _generated(model, prompt, limit, settings):
            equal += 1
        elif not is_precise(target):
            ties += _is_explained(auditor, sampler, prompt, ours, limit)
    figure = f"{equal} of {len(prompts)} texts of {tokens} tokens equal"
    if ties:
        figure += f", {ties} ties"
    bound = "all" if is_precise(target) else "all, but for near ties"
    return Check.of("greedy is generate", subject, equal + ties == len(prompts), figure, bound)


def _is_explained(
    auditor: Auditor, sampler: Sampler, prompt: list[int], text: list[int], limit: Limit
) -> bool:
    """Whether the errors of vanilla's own leads explain each token of its text: the threshold of
    the verdict `tie`.
    """
    finding = auditor.audit(sampler, prompt, text, text, limit)
    return max(finding.vanilla_regrets) <= 2 * finding.margin_error


def _generated(model: Any, prompt: list[int], limit: Limit, penalties: Penalties) -> list[int]:
    """Return the new tokens of `transformers.generate`, greedily."""
    ids = torch.tensor([prompt], device=model.device)
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=greedy_settings(
            limit.max_new_tokens,
            limit.stop_ids,
            repetition_penalty=penalties.repetition_penalty,
            no_repeat_ngram_size=penalties.no_repeat_ngram_size,
        ),
    )
    return output[0, len(prompt) :].tolist()
