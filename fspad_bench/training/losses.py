"""What a draft network is trained on (FSPAD section 3.3; EAGLE's losses are the same with h_logit = h_feature).

L_v pulls h_feature to the target's next feature, L_p the soft-max over h_logit to the target's. With a draft
vocabulary the target's soft-max is renormalised on it and each position weighted by the mass it has there: the part
of the published loss that such a draft can do something about, and the published loss itself on the full vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Losses(NamedTuple):
    """Means over the supervised positions; `agreement` is the share where the draft's first choice is the target's,
    `mass` the target's probability of the draft vocabulary."""

    feature: Tensor
    logit: Tensor
    top: Tensor
    agreement: Tensor
    mass: Tensor


def losses(
    h_logit: Tensor,
    h_feature: Tensor,
    target_feature: Tensor,
    normaliser: Tensor,
    choice: Tensor,
    lm_head: Tensor,
    top_k: int = 0,
) -> Losses:
    """Each of N supervised rows against its target.

    h_logit, h_feature, target_feature `[N, d]`; normaliser `[N]`, the log-sum-exp of the target's
    logits over its whole vocabulary; choice `[N]`, the draft-vocabulary index of the target's first choice, -1 where it
    has none; lm_head `[S, d]`, the target's rows of the draft vocabulary.
    `top` is the cross-entropy on the target's `top_k` likeliest tokens alone (HASS, arXiv 2408.15766); 0 of none.
    """
    feature = F.smooth_l1_loss(h_feature.float(), target_feature.float())
    with torch.no_grad():
        logits = F.linear(target_feature.to(lm_head.dtype), lm_head).float()
        law = logits.softmax(-1)
        inside = (
            logits.amax(-1) - law.amax(-1).log()
        )  # their log-sum-exp, without another pass of exponentials
        mass = (inside - normaliser).exp().clamp(max=1)
    guess = F.linear(h_logit.to(lm_head.dtype), lm_head).float()
    said = guess.log_softmax(-1)
    logit = -(law * said).sum(
        -1
    )  # a product of the two would be rounded to bfloat16 under autocast
    likely = law.topk(top_k, dim=-1)
    top = -(likely.values * said.gather(-1, likely.indices)).sum(-1)
    agreement = (guess.argmax(-1) == choice).float().mean()
    return Losses(feature, (mass * logit).mean(), (mass * top).mean(), agreement, mass.mean())
