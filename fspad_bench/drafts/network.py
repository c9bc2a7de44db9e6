"""The draft networks of EAGLE (Li et al. 2024, arXiv 2401.15077) and FSPAD (Gui et al. 2024, arXiv 2408.15562).

Both predict the target's next feature from its last feature f and the embedding e of the token that was sampled
from it, by one decoder layer without an input norm. FSPAD changes the two ends. Feature sampling: f does not say
which token was drawn, so e gates the fused input in the wide space of a SwiGLU. Partial alignment distillation: one
vector cannot both match the target's feature and give confident logits, so the last projection is doubled and each
half does one of the two. Formulas as released by FSPAD's authors; d is the hidden size, m the MLP's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Arm(NamedTuple):
    """What a draft network is made of, beside its sizes."""

    feature_sampling: bool = False
    split_output: bool = False
    wide: bool = False


ARMS = {
    "eagle": Arm(),
    "fspad": Arm(feature_sampling=True, split_output=True),
    "feature-sampling": Arm(feature_sampling=True),
    "partial-alignment": Arm(split_output=True),
    "wide": Arm(
        wide=True
    ),  # EAGLE with as many parameters as FSPAD: the control that the paper does without
}


@dataclass(frozen=True)
class Shape:
    """What a draft network is built from; all of it stands in the head's file."""

    d: int
    m: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    eps: float
    feature_sampling: bool = False
    split_output: bool = False
    wide: bool = False

    @property
    def arm(self) -> str:
        """The name of what this is, `mixed` where it is none of the known arms."""
        made = Arm(self.feature_sampling, self.split_output, self.wide)
        return next((name for name, arm in ARMS.items() if arm == made), "mixed")

    @property
    def output_width(self) -> int:
        """Of the last MLP: feature sampling and a split output add 4 d m weights to EAGLE's 3 d m there."""
        return self.m + 4 * self.m // 3 if self.wide else self.m

    @classmethod
    def of_target(cls, config: object, arm: str) -> Shape:
        """The target's own layer shape, as EAGLE takes it."""
        heads = config.num_attention_heads
        return cls(
            d=config.hidden_size,
            m=config.intermediate_size,
            heads=heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            rope_theta=float(
                (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0)
            ),
            eps=config.rms_norm_eps,
            **ARMS[arm]._asdict(),
        )


class DraftOutput(NamedTuple):
    """`h_logit` feeds the LM head, `h_feature` the next draft step; both `[..., d]`, one vector twice in EAGLE."""

    h_logit: Tensor
    h_feature: Tensor


class Norm(nn.RMSNorm):
    """RMSNorm in the precision of its input, under mixed-precision training too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Fusion(nn.Module):
    """EAGLE's input: z = W_fc [e; f] + b.    e, f, z: [..., d]"""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * shape.d, shape.d)

    def forward(self, e: Tensor, f: Tensor) -> Tensor:
        return self.fc(torch.cat([e, f], dim=-1))


class FeatureSampling(Fusion):
    """FSPAD's input: x = z + W_down(silu(W_gate e) * W_up norm(z)).  The gate sees the raw embedding alone."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.norm = Norm(shape.d, shape.eps)
        self.gate = nn.Linear(shape.d, shape.m, bias=False)
        self.up = nn.Linear(shape.d, shape.m, bias=False)
        self.down = nn.Linear(shape.m, shape.d, bias=False)

    def forward(self, e: Tensor, f: Tensor) -> Tensor:
        z = super().forward(e, f)
        return z + self.down(F.silu(self.gate(e)) * self.up(self.norm(z)))


class Attention(nn.Module):
    """Llama's attention over whole sequences; step by step it is `lean`'s."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.heads * shape.head_dim
        kv_width = shape.kv_heads * shape.head_dim
        self.q = nn.Linear(shape.d, width, bias=False)
        self.k = nn.Linear(shape.d, kv_width, bias=False)
        self.v = nn.Linear(shape.d, kv_width, bias=False)
        self.o = nn.Linear(width, shape.d, bias=False)

    def keys_values(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """x `[..., N, d]`, rope `[..., N, D]` complex halves -> K and V `[..., H_kv, N, D]`."""
        return rotate(self._split(self.k(x)), rope), self._split(self.v(x))

    def attend(self, x: Tensor, rope: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries from x `[..., N, d]` over their own K and V and those of the rows before them."""
        q = rotate(self._split(self.q(x)), rope)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o(out.transpose(-2, -3).flatten(-2))

    def attend_unrolled(
        self, x: Tensor, rope: Tensor, ks: list[Tensor], vs: list[Tensor]
    ) -> Tensor:
        """Queries of the last of j + 1 forwards, x `[B, L, d]`, over the K and V `[B, H_kv, L, D]` of each.

        A draft's j-th token sees what the target computed, up to j rows back, and the j rows that were drafted since:
        row i sees rows p <= i - j of the first forward, and row i - j + n of the n-th for n = 1..j. What it does not
        see has weight 0, where published code multiplies scores by a mask and leaves it in the denominator.
        """
        j = len(ks) - 1
        length = x.shape[-2]
        q = rotate(self._split(self.q(x)), rope)
        ks, vs = (
            [t.repeat_interleave(q.shape[-3] // t.shape[-3], dim=-3) for t in each]
            for each in (ks, vs)
        )
        back = torch.ones(length, length, dtype=torch.bool, device=x.device).tril(-j)
        scores = [(q @ ks[0].transpose(-1, -2)).masked_fill(~back, float("-inf"))]
        drafted = [(keys.roll(j - n, dims=-2), values.roll(j - n, dims=-2))
                   for n, (keys, values) in enumerate(zip(ks[1:], vs[1:], strict=True), start=1)]  # fmt: skip
        scores += [(q * keys).sum(-1, keepdim=True) for keys, _ in drafted]
        wide = torch.promote_types(q.dtype, torch.float32)
        weights = (
            (torch.cat(scores, dim=-1).to(wide) * self.shape.head_dim**-0.5).softmax(-1).to(q.dtype)
        )
        out = weights[..., :length] @ vs[0]
        for n, (_, values) in enumerate(drafted):
            out = out + weights[..., length + n, None] * values
        return self.o(out.transpose(-2, -3).flatten(-2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.shape.head_dim)).transpose(-2, -3)


class Output(nn.Module):
    """The last half-layer: an MLP on the attention's residual stream a `[..., d]`, without a final norm.

    With `split_output` its last projection is doubled: h_logit = a + W_1 u, h_feature = a + W_2 u, in this order.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.halves = 2 if shape.split_output else 1
        self.norm = Norm(shape.d, shape.eps)
        self.gate = nn.Linear(shape.d, shape.output_width, bias=False)
        self.up = nn.Linear(shape.d, shape.output_width, bias=False)
        self.down = nn.Linear(shape.output_width, self.halves * shape.d, bias=False)

    def forward(self, a: Tensor) -> DraftOutput:
        n = self.norm(a)
        outputs = self.down(F.silu(self.gate(n)) * self.up(n)).chunk(self.halves, dim=-1)
        return DraftOutput(a + outputs[0], a + outputs[-1])


class DraftNetwork(nn.Module):
    """fuse -> attention -> output. Row i reads (f_i, e_{i+1}), stands at position i, and predicts f_{i+1}."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.fuse = FeatureSampling(shape) if shape.feature_sampling else Fusion(shape)
        self.attention = Attention(shape)
        self.output = Output(shape)

    def forward(self, e: Tensor, f: Tensor, rows: Tensor) -> DraftOutput:
        """Teacher forcing over whole sequences: e, f `[B, L, d]`, causal; the outputs of the chosen `rows` `[B, L]`."""
        x = self.fuse(e, f)
        rope = self.rope(torch.arange(e.shape[-2], device=e.device)).to(x.dtype)
        k, v = self.attention.keys_values(x, rope)
        a = x + self.attention.attend(x, rope, k, v)
        return self.output(a[rows])

    def unrolled(self, e: Tensor, f: Tensor, steps: int) -> list[DraftOutput]:
        """Forwards of `steps` draft levels over whole sequences, all rows: `[B, L, d]` each.

        The first reads the target's features. Each later one reads what the one before predicted, shifted by a row and
        detached, so row i says what a draft of that depth says there (HASS, Zhang et al. 2024, arXiv 2408.15766; a row
        with fewer than that many before it says nothing of worth).
        """
        rope = self.rope(torch.arange(e.shape[-2], device=e.device)).to(e.dtype)
        found = []
        ks = []
        vs = []
        for step in range(steps):
            if step:
                f = F.pad(found[-1].h_feature.detach()[..., :-1, :], (0, 0, 1, 0)).to(f.dtype)
            x = self.fuse(e, f)
            k, v = self.attention.keys_values(x, rope.to(x.dtype))
            ks.append(k)
            vs.append(v)
            if step:
                a = x + self.attention.attend_unrolled(x, rope.to(x.dtype), ks, vs)
            else:
                a = x + self.attention.attend(x, rope.to(x.dtype), k, v)
            found.append(self.output(a))
        return found

    def rope(self, positions: Tensor) -> Tensor:
        """positions `[N]` -> cosines and sines of every frequency, `[2, N, D / 2]`."""
        half = self.shape.head_dim // 2
        steps = torch.arange(half, device=positions.device, dtype=torch.float64) / half
        angles = positions[:, None] * self.shape.rope_theta**-steps
        return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotary position embedding with halves paired, as in Llama. x `[..., N, D]`, rope `[2, N, D / 2]`."""
    low, high = x.chunk(2, dim=-1)
    cos, sin = rope
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
