"""The parts that the draft networks of the EAGLE family share: shapes, attention, the output MLP,
and the whole.

A draft network predicts the target's next feature from its last feature f and the embedding e of
the token that was sampled from it, by one decoder layer without an input norm: fuse -> attention ->
output. What is a method's own, the fusion and the output, stands in its file of `decoders/`.

- d is the hidden size, m the MLP's width, H heads, H_kv key-value heads, D their width.
- Row i reads (f_i, e_{i+1}), stands at position i, and predicts f_{i+1}.
- Architectures are registered by name in the entry-point group `fspad_bench.architectures`; the
  name stands in a head's file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from fspad_bench.errors import BenchError, near
from fspad_bench.util import registry

GROUP = "fspad_bench.architectures"


LARGEST = 1e12  # of a rotary base


@dataclass(frozen=True)
class Shape:
    """The sizes of a draft network; they stand in the head's file.

    `qkv_bias`: queries, keys and values have biases, as in published heads for Qwen2.
    """

    d: int
    m: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    eps: float
    qkv_bias: bool = False

    @classmethod
    def read(cls, sizes: dict[str, Any]) -> Shape:
        """Return the shape that a file states. Raises ValueError for sizes that no network has."""
        shape = cls(**sizes)
        for name in ("d", "m", "heads", "kv_heads", "head_dim"):
            value = getattr(shape, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"its shape's {name} is {value!r:.60}, not a whole number above 0")
        for name in ("rope_theta", "eps"):
            value = getattr(shape, name)
            if type(value) not in (int, float) or not 0 < value < LARGEST:
                raise ValueError(f"its shape's {name} is {value!r:.60}, not a number above 0")
        if type(shape.qkv_bias) is not bool:
            raise ValueError(f"its shape's qkv_bias is {shape.qkv_bias!r:.60}, not true or false")
        return shape

    @classmethod
    def of_target(cls, config: PreTrainedConfig) -> Shape:
        """Return the shape of the target's own layers, as EAGLE takes it."""
        heads = config.num_attention_heads
        rope = getattr(config, "rope_parameters", None) or {}
        return cls(
            d=config.hidden_size,
            m=config.intermediate_size,
            heads=heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            rope_theta=float(rope.get("rope_theta", 10000.0)),
            eps=config.rms_norm_eps,
        )


class DraftOutput(NamedTuple):
    """`h_logit` feeds the LM head, `h_feature` the next draft step; both `[..., d]`."""

    h_logit: Tensor
    h_feature: Tensor


class Norm(nn.RMSNorm):
    """RMSNorm in the precision of its input, under mixed-precision training too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Llama's attention over whole sequences; `fused` does the same step by step."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.heads * shape.head_dim
        kv_width = shape.kv_heads * shape.head_dim
        self.q = nn.Linear(shape.d, width, bias=shape.qkv_bias)
        self.k = nn.Linear(shape.d, kv_width, bias=shape.qkv_bias)
        self.v = nn.Linear(shape.d, kv_width, bias=shape.qkv_bias)
        self.o = nn.Linear(width, shape.d, bias=False)

    def keys_values(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """x `[..., N, d]`, rope `[2, N, D / 2]` -> K and V `[..., H_kv, N, D]`."""
        return rotate(self._split(self.k(x)), rope), self._split(self.v(x))

    def attend(self, x: Tensor, rope: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend causally: queries from x `[..., N, d]` over K and V of the same rows."""
        q = rotate(self._split(self.q(x)), rope)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o(out.transpose(-2, -3).flatten(-2))

    def attend_unrolled(
        self, x: Tensor, rope: Tensor, ks: list[Tensor], vs: list[Tensor]
    ) -> Tensor:
        """Attend from the last of j + 1 forwards, x `[B, L, d]`, over the K and V `[B, H_kv, L, D]`
        of each.

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


class Output(nn.Module):
    """The last half-layer: h = a + W_down(silu(W_gate n) * W_up n), n = norm(a).    a, h: [..., d]

    a is attention's residual stream; there is no final norm. One vector h serves as both outputs.
    """

    parts: ClassVar[int] = 1
    """How many vectors of width d the down projection yields."""

    def __init__(self, shape: Shape, width: int | None = None) -> None:
        super().__init__()
        width = width or shape.m
        self.norm = Norm(shape.d, shape.eps)
        self.gate = nn.Linear(shape.d, width, bias=False)
        self.up = nn.Linear(shape.d, width, bias=False)
        self.down = nn.Linear(width, self.parts * shape.d, bias=False)

    def forward(self, a: Tensor) -> DraftOutput:
        n = self.norm(a)
        return self.outputs(a, self.down(F.silu(self.gate(n)) * self.up(n)))

    def outputs(self, a: Tensor, update: Tensor) -> DraftOutput:
        """Return the outputs from the residual a `[..., d]` and the update `[..., parts d]`."""
        h = a + update
        return DraftOutput(h, h)


class DraftNetwork(nn.Module, ABC):
    """fuse -> attention -> output. A subclass names its architecture, its fusion and its output."""

    architecture: ClassVar[str] = ""
    published: ClassVar[dict[str, str]] = {}
    """The fusion's weights by the names under which its authors publish them: ours -> theirs."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.fuse: Any = self.build_fusion(shape)
        self.attention = Attention(shape)
        self.output = self.build_output(shape)

    @classmethod
    @abstractmethod
    def build_fusion(cls, shape: Shape) -> nn.Module:
        """Return the module (e, f) -> x.

        It has `fused(ops)`, the same for decoding (`fused.Fuse`).
        """

    @classmethod
    def build_output(cls, shape: Shape) -> Output:
        return Output(shape)

    def forward(self, e: Tensor, f: Tensor, rows: Tensor) -> DraftOutput:
        """Run whole sequences with teacher forcing.

        E, f `[B, L, d]`, causal; outputs of the chosen rows `[B, L]`.
        """
        x = self.fuse(e, f)
        rope = self.rope(torch.arange(e.shape[-2], device=e.device)).to(x.dtype)
        k, v = self.attention.keys_values(x, rope)
        a = x + self.attention.attend(x, rope, k, v)
        return self.output(a[rows])

    def unrolled(self, e: Tensor, f: Tensor, steps: int) -> list[DraftOutput]:
        """Run `steps` draft levels over whole sequences, all rows: `[B, L, d]` each.

        The first reads the target's features. Each later one reads what the one before predicted,
        shifted by a row and detached, so row i is what a draft of that depth predicts there (HASS,
        Zhang et al. 2024, arXiv 2408.15766). A row with fewer than that many before it is
        meaningless.
        """
        rope = self.rope(torch.arange(e.shape[-2], device=e.device)).to(e.dtype)
        outputs: list[DraftOutput] = []
        ks: list[Tensor] = []
        vs: list[Tensor] = []
        for step in range(steps):
            if step:
                shifted = F.pad(outputs[-1].h_feature.detach()[..., :-1, :], (0, 0, 1, 0))
                f = shifted.to(f.dtype)
            x = self.fuse(e, f)
            k, v = self.attention.keys_values(x, rope.to(x.dtype))
            ks.append(k)
            vs.append(v)
            if step:
                a = x + self.attention.attend_unrolled(x, rope.to(x.dtype), ks, vs)
            else:
                a = x + self.attention.attend(x, rope.to(x.dtype), k, v)
            outputs.append(self.output(a))
        return outputs

    def rope(self, positions: Tensor) -> Tensor:
        """Return cosines and sines of every frequency at positions `[N]`: `[2, N, D / 2]`."""
        half = self.shape.head_dim // 2
        steps = torch.arange(half, device=positions.device, dtype=torch.float64) / half
        angles = positions[:, None] * self.shape.rope_theta**-steps
        return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Apply rotary embedding with halves paired, as in Llama.

    x `[..., N, D]`, rope `[2, N, D / 2]`.
    """
    low, high = x.chunk(2, dim=-1)
    cos, sin = rope
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def architecture(name: str) -> type[DraftNetwork]:
    """Return a registered network class. Raises BenchError with the near match."""
    if name not in registry.names(GROUP):
        raise BenchError(f"unknown draft network '{name}'", near(name, registry.names(GROUP)))
    return registry.resolve(GROUP, name)


def architectures() -> dict[str, type[DraftNetwork]]:
    """Return every registered network class by its name."""
    return {name: registry.resolve(GROUP, name) for name in registry.names(GROUP)}
