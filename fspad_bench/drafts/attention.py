"""The attention of a draft network's decoder layer, over whole sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fspad_bench.drafts.shape import Shape


class Attention(nn.Module):
    """Llama's attention over whole sequences; `fused` does the same step by step.

    Its input x is `inputs` vectors of width d side by side.
    """

    def __init__(self, shape: Shape, inputs: int = 1) -> None:
        super().__init__()
        self.shape = shape
        width = shape.heads * shape.head_dim
        kv_width = shape.kv_heads * shape.head_dim
        self.q = nn.Linear(inputs * shape.d, width, bias=shape.qkv_bias)
        self.k = nn.Linear(inputs * shape.d, kv_width, bias=shape.qkv_bias)
        self.v = nn.Linear(inputs * shape.d, kv_width, bias=shape.qkv_bias)
        self.o = nn.Linear(width, shape.d, bias=False)

    def keys_values(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """x `[..., N, inputs d]`, rope `[2, N, D / 2]` -> K and V `[..., H_kv, N, D]`."""
        return rotate(self._split(self.k(x)), rope), self._split(self.v(x))

    def attend(
        self, x: Tensor, rope: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """Attend from queries of x `[..., N, inputs d]` over K and V `[..., H_kv, M, D]`.

        `visible [N, M]` marks what each query sees; without it K and V are of the same rows, and
        attention is causal.
        """
        q = rotate(self._split(self.q(x)), rope)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=visible is None, enable_gqa=True
        )
        return self.o(out.transpose(-2, -3).flatten(-2))

    def attend_unrolled(
        self, x: Tensor, rope: Tensor, ks: list[Tensor], vs: list[Tensor]
    ) -> Tensor:
        """Attend from the last of j + 1 forwards, x `[B, L, inputs d]`, over the K and V
        `[B, H_kv, L, D]` of each.

        A draft's j-th token sees what the target computed, up to j rows back, and the j rows that
        were drafted since: row i sees rows p <= i - j of the first forward, and row i - j + n of
        the n-th for n = 1..j. Rows it does not see have weight 0, where published code multiplies
        scores by a mask and leaves them in the denominator.
        """
        j = len(ks) - 1
        length = x.shape[-2]
        q = rotate(self._split(self.q(x)), rope)
        groups = q.shape[-3] // ks[0].shape[-3]
        ks = [k.repeat_interleave(groups, dim=-3) for k in ks]
        vs = [v.repeat_interleave(groups, dim=-3) for v in vs]
        back = torch.ones(length, length, dtype=torch.bool, device=x.device).tril(-j)
        scores = [(q @ ks[0].transpose(-1, -2)).masked_fill(~back, float("-inf"))]
        drafted = [
            (keys.roll(j - n, dims=-2), values.roll(j - n, dims=-2))
            for n, (keys, values) in enumerate(zip(ks[1:], vs[1:], strict=True), start=1)
        ]
        scores += [(q * keys).sum(-1, keepdim=True) for keys, _ in drafted]
        wide = torch.promote_types(q.dtype, torch.float32)
        logits = torch.cat(scores, dim=-1).to(wide) * self.shape.head_dim**-0.5
        weights = logits.softmax(-1).to(q.dtype)
        out = weights[..., :length] @ vs[0]
        for n, (_, values) in enumerate(drafted):
            out = out + weights[..., length + n, None] * values
        return self.o(out.transpose(-2, -3).flatten(-2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.shape.head_dim)).transpose(-2, -3)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Apply rotary embedding with halves paired, as in Llama.

    x `[..., N, D]`, rope `[2, N, D / 2]`.
    """
    low, high = x.chunk(2, dim=-1)
    cos, sin = rope
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
