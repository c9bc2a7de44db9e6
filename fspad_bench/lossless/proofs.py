"""The proofs of vanilla and of the sampler, on which everything else leans: identity is identity with these.

The noise gives the law it should, whatever the hash; the processed law is that of transformers' own warpers; greedy
decoding is `transformers.generate`; and PIT of vanilla on the target at hand closes the circle.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fspad_bench.core.loop import Limit, generate
from fspad_bench.core.sampling import Sampler, gumbel, hash32
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.lossless.distribution import ALPHA, draws_needed, g_test
from fspad_bench.lossless.report import Check

OUTCOMES = 16
BLOCK = 10_000
SETTINGS = [(0.3, 0, 1.0), (1.0, 0, 0.9), (0.7, 50, 1.0), (1.5, 20, 0.8), (1.0, 0, 0.3)]
WARPER_BOUND = 1e-12


def check_sampler(draws: int = 10_000_000) -> list[Check]:
    """The noise: finite for every hash at either end of the scale, and of the right law over many draws."""
    return [_finite(), _law(draws), _warpers()]


def noise_is_finite() -> bool:
    """Over the 4,096 smallest and largest hashes, where a careless formula overflows."""
    ends = torch.cat([torch.arange(4096), 2**32 - 1 - torch.arange(4096)])
    return bool(
        gumbel(torch.where(ends < 2**31, ends, ends - 2**32).to(torch.int32)).isfinite().all()
    )


def _finite() -> Check:
    return Check.of(
        "noise is finite", "sampler", noise_is_finite(), "8,192 hashes at the ends", "all"
    )


def _law(draws: int) -> Check:
    """argmax(log p + noise) over 16 outcomes, at draws / 10^4 positions and 10^4 disjoint runs of token ids each."""
    p = torch.arange(1, OUTCOMES + 1, dtype=torch.float64).pow(2)
    p = p / p.sum()
    key = Sampler(1.0, stream="law").key
    counts = torch.zeros(OUTCOMES, dtype=torch.int64)
    tokens = torch.arange(BLOCK * OUTCOMES)
    for position in range(draws // BLOCK):
        noise = gumbel(hash32(key, position, tokens)).reshape(BLOCK, OUTCOMES)
        counts += torch.bincount((p.log() + noise).argmax(1), minlength=OUTCOMES)
    law = {(i,): float(x) for i, x in enumerate(p)}
    value = g_test(law, Counter({(i,): int(n) for i, n in enumerate(counts)}))
    seen = (draws_needed(OUTCOMES, 1.0) / draws) ** 0.5
    figure = f"p {value:.2g} of {draws:.0e} draws: TV {seen:.1g} seen with 99%"
    return Check.of("law of the noise", "sampler", value >= ALPHA, figure, f"p {ALPHA:.0e}")


def _warpers() -> Check:
    """Processed laws against transformers' warpers, row by row, without ties."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for temperature, top_k, top_p in SETTINGS:
        for spread in (1.0, 4.0, 12.0):
            logits = torch.randn(2000, generator=generator, dtype=torch.float64) * spread
            row = TemperatureLogitsWarper(temperature)(None, logits[None])
            row = TopKLogitsWarper(top_k)(None, row) if top_k else row
            row = TopPLogitsWarper(top_p)(None, row) if top_p < 1 else row
            law = Sampler(temperature, top_k, top_p).law(logits)
            worst = max(worst, float((law - row[0].softmax(0)).abs().max()))
    figure = f"{worst:.1e} off transformers' warpers"
    return Check.of(
        "processed law", "sampler", worst <= WARPER_BOUND, figure, f"{WARPER_BOUND:.0e}"
    )


@torch.inference_mode()
def check_greedy(target: TransformersTarget, prompts: list[list[int]], tokens: int) -> Check:
    """Vanilla at T = 0 against `transformers.generate`, with transformers' own attention and cache."""
    model = copy.deepcopy(target.model)
    equal = 0
    model.set_attn_implementation("sdpa")
    for prompt in prompts:
        made = generate(
            target, Vanilla(target), Sampler(), prompt, Limit(tokens, target.stop_ids)
        ).tokens
        ids = torch.tensor([prompt], device=target.device)
        plain = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": tokens}
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), **plain)
        equal += made == theirs[0, len(prompt) :].tolist()
    figure = f"{equal} of {len(prompts)} texts of {tokens} tokens equal"
    return Check.of("greedy is generate", "vanilla", equal == len(prompts), figure, "all")
