"""The losses of FSPAD section 3.3; EAGLE's are the same with h_logit = h_feature.

For one supervised position, with the target's next feature F and LM head W, the draft's outputs
h_logit and h_feature, the draft vocabulary S, and W_S the rows of W for S:

    L_v   = smooth_l1(h_feature, F)
    L_p   = -m * sum_{t in S} p(t) log q(t),   p = softmax(W_S F),  q = softmax(W_S h_logit)
    m     = sum_{t in S} softmax(W F)(t) = exp(logsumexp(W_S F) - logsumexp(W F))
    L_top = L_p over the target's k likeliest tokens of S alone   (HASS, arXiv 2408.15766)
    L_t   = -log q(t) for the text's next token t, 0 where S lacks it

- With S the full vocabulary, m = 1 and L_p is the published loss.
- With a smaller one, p is renormalised on S and weighted by the target's mass m there: the part of
  the published loss that such a draft can reduce.
- A draft with an LM head U of its own has q = softmax(U h_logit).
- A draft that reads other hidden states than the final one has another goal than F in L_v.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

Number = TypeVar("Number", Tensor, float)


class Losses(NamedTuple, Generic[Number]):
    """Means over the supervised positions, 0 of none: L_v, L_p, L_top, two figures, and L_t.

    - `agreement`: how often the draft's first choice is the target's.
    - `mass`: m, the target's probability of the draft vocabulary.
    """

    feature: Number
    logit: Number
    top: Number
    agreement: Number
    mass: Number
    token: Number


class Wanted(NamedTuple):
    """What the target says after each of N positions, within the draft vocabulary S.

    - `p [N, S]`, `mass [N]`: as above.
    - `choice [N]`: its first choice as an index of the vocabulary, -1 where that lacks it.
    - `token [N]`: the text's next token likewise; None where nothing is learned from that.
    """

    p: Tensor
    mass: Tensor
    choice: Tensor
    token: Tensor | None = None

    def at(self, kept: Tensor) -> Wanted:
        """Return what it says at the positions that are true in `kept [N]`."""
        token = None if self.token is None else self.token[kept]
        return Wanted(self.p[kept], self.mass[kept], self.choice[kept], token)


@torch.no_grad()
def wanted(
    feature: Tensor,
    normaliser: Tensor,
    choice: Tensor,
    lm_head: Tensor,
    token: Tensor | None = None,
) -> Wanted:
    """Return what the target says, from its features `[N, d]` and its LM head's rows W_S `[S, d]`.

    normaliser `[N]`: logsumexp(W F) over the target's whole vocabulary.
    """
    logits = F.linear(feature.to(lm_head.dtype), lm_head).float()
    p = logits.softmax(-1)
    # max(x) - log(max(softmax(x))) is logsumexp(x), without exponentiating a second time
    log_sum_exp = logits.amax(-1) - p.amax(-1).log()
    return Wanted(p, (log_sum_exp - normaliser).exp().clamp(max=1), choice, token)


def losses(
    h_logit: Tensor,
    h_feature: Tensor,
    goal: Tensor,
    target: Wanted,
    draft_head: Tensor,
    top_k: int = 0,
) -> Losses[Tensor]:
    """Return the losses of N supervised positions.

    - h_logit, h_feature `[N, d]`; goal `[N, d]`: what h_feature is compared with, mostly F.
    - draft_head `[S, d]`: the draft's U, mostly W_S.
    - top_k: k of L_top; 0 leaves that loss at 0.
    """
    feature = _mean(F.smooth_l1_loss(h_feature.float(), goal.float(), reduction="none"))
    draft_logits = F.linear(h_logit.to(draft_head.dtype), draft_head).float()
    log_q = draft_logits.log_softmax(-1)
    # not as a matrix product, which autocast would round to bfloat16
    logit = -(target.p * log_q).sum(-1)
    likely = target.p.topk(top_k, dim=-1)
    top = -(likely.values * log_q.gather(-1, likely.indices)).sum(-1)
    agreement = _mean((draft_logits.argmax(-1) == target.choice).float())
    logit = _mean(target.mass * logit)
    top = _mean(target.mass * top)
    token = _of_text(log_q, target.token)
    return Losses(feature, logit, top, agreement, _mean(target.mass), token)


def _of_text(log_q: Tensor, token: Tensor | None) -> Tensor:
    """Return L_t of log_q `[N, S]` and the text's tokens `[N]`."""
    if token is None:
        return log_q.new_zeros(())
    own = log_q.gather(-1, token.clamp(min=0)[:, None])[:, 0]
    return -_mean(torch.where(token >= 0, own, 0.0))


def _mean(x: Tensor) -> Tensor:
    """Return the mean, or 0 of no numbers: a part of the graph, which processes must share."""
    return x.mean() if x.numel() else x.sum()
