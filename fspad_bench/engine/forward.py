"""The forward of a target, lean: the stock layers' arithmetic over the model's own weights, and nothing else.

At batch 1 a small model spends a third of a step on bookkeeping: kwargs handed down, masks considered, three products
where one would do. Here the projections that read the same input are one product over their stacked weights (the
model's parameters become views of them, so nothing is held twice), rotary tables are computed once, the cache's rows
are written where they stay, and what lies between the products is compiled where it can be (`native`). Every arm runs
it, vanilla first of all; it equals the stock forward (float64, 1e-9), which loading checks again on the model at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from fspad_bench.engine.cpu import linear, native
from fspad_bench.engine.cpu.linear import Matrix, stacked
from fspad_bench.engine.cpu.native import Between, Native, Plain

NAME = "lean"
TYPES = ("llama", "mistral", "qwen2", "qwen3")
SPARE = 1024
Attend = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, queries, keys and values not yet rotated `[N, H + 2 H_kv, D]`, rope) -> what each row sees, `[N, H D]`."""
AttendRotated = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, query `[H, N, D]`, new keys and values `[H_kv, N, D]`) -> what each row sees, `[H, N, D]`."""


class Layer(NamedTuple):
    """One decoder layer's weights, in the order in which they are used; query and key norms where Qwen3 has them."""

    norm: Tensor
    qkv: Matrix
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Matrix
    norm_after: Tensor
    gate_up: Matrix
    down: Matrix


class LeanForward:
    """tokens `[N]` -> features `[N, d]`, after the final norm. What the rows attend to is the caller's business."""

    def __init__(self, model: PreTrainedModel) -> None:
        base = model.base_model
        config = model.config
        self.embedding = base.embed_tokens.weight
        self.final_norm = base.norm.weight
        self.rotary = base.rotary_emb
        self.eps = config.rms_norm_eps
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = base.layers[0].self_attn.head_dim
        self.scaling = base.layers[0].self_attn.scaling
        self.parts = native.fitting(
            self.embedding, config.hidden_size, config.intermediate_size
        ) or Plain(_norm)
        products = linear.NAME if linear.suits(self.embedding) else linear.STOCK
        self.name = f"{NAME}, {native.NAME if self.parts.compiled else products}"
        self.layers = [_layer(layer) for layer in base.layers]
        ends = [*((layer.norm, layer.qkv) for layer in self.layers[1:]), (self.final_norm, None)]
        self.between = [
            _between(self.parts, *pair, self.eps) for pair in zip(self.layers, ends, strict=True)
        ]
        self.table = self.embedding.new_empty(2, 0, self.head_dim)

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether this is the arithmetic of the model: a listed architecture, plain weights, one device."""
        base = model.base_model
        plain = all(type(m) is nn.Linear for m in base.modules() if isinstance(m, nn.Linear))
        activation = getattr(model.config, "hidden_act", "silu")
        together = len({(p.device, p.dtype) for p in base.parameters()}) == 1
        return model.config.model_type in TYPES and plain and together and activation == "silu"

    def __call__(self, tokens: Tensor, rope: Tensor, attend: Attend) -> Tensor:
        """`rope` is that of the tokens' positions."""
        first = self.layers[0]
        eps = self.eps
        x, n = self.parts.add_norm(F.embedding(tokens, self.embedding), None, first.norm, eps)
        made = first.qkv(n)
        for number, (layer, between) in enumerate(zip(self.layers, self.between, strict=True)):
            rows = made.unflatten(-1, (-1, self.head_dim))
            if layer.q_norm is not None:
                q, k, v = rows.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
                rows = torch.cat(
                    [_norm(q, layer.q_norm, eps), _norm(k, layer.k_norm, eps), v], dim=1
                )
            x, made = between(x, attend(number, rows, rope))
        return made

    def rotating(self, attend: AttendRotated) -> Attend:
        """The same for a function that wants its queries and keys rotated."""
        heads = self.heads
        kv_heads = self.kv_heads

        def rotate_and_attend(layer: int, rows: Tensor, rope: Tensor) -> Tensor:
            qk, v = rows.transpose(0, 1).split([heads + kv_heads, kv_heads])
            q, k = rotated(qk, *rope).split([heads, kv_heads])
            return attend(layer, q, k, v).transpose(0, 1).flatten(1)

        return rotate_and_attend

    def rope(self, positions: Sequence[int]) -> Tensor:
        """Cosines, and sines with the sign of their half, of these positions: `[2, N, D]`."""
        last = max(positions)
        if len(positions) == last - positions[0] + 1:
            return self._table(last + 1)[:, positions[0] : last + 1]
        return self.rope_at(torch.tensor(positions, device=self.embedding.device), last + 1)

    def rope_at(self, positions: Tensor, end: int) -> Tensor:
        """The same for positions `[N]` on the device, all below `end`."""
        return self._table(end)[:, positions]

    def _table(self, end: int) -> Tensor:
        """Of every position below `end`, and some more."""
        if end > self.table.shape[1]:
            every = torch.arange(end + SPARE, device=self.embedding.device)[None]
            cos, sin = self.rotary(self.embedding[:1], every)
            sin[..., : self.head_dim // 2].neg_()
            self.table = torch.cat([cos, sin])
        return self.table


def _between(
    parts: Plain | Native, layer: Layer, end: tuple[Tensor, Matrix | None], eps: float
) -> Between:
    """(x, what the layer's attention saw) -> (x, the next one's projections), or the features behind the last layer.

    `end` is the norm that follows the layer, and the product that follows it.
    """
    norm, following = end
    matrices = [layer.out, layer.gate_up, layer.down, *filter(None, [following])]

    def run(x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        x, n = parts.add_norm(x, layer.out(seen), layer.norm_after, eps)
        x, n = parts.add_norm(x, layer.down(parts.gated(layer.gate_up(n))), norm, eps)
        return x, following(n) if following else n

    if not (parts.compiled and all(matrix.native for matrix in matrices)):
        return run
    out, gate_up, down, ahead = (
        (m.packed, m.bias) if m else (None, None) for m in (*matrices[:3], following)
    )
    weights = *out, layer.norm_after, *gate_up, *down, norm, *ahead
    widths = layer.out.width, layer.out.outs, layer.down.width, following.outs if following else 0
    together = parts.between(weights, widths, eps)
    return lambda x, seen: (together if len(x) <= native.ROWS else run)(x, seen)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of the last dimension. The stock one always works in float32, so in float64 this must too."""
    if x.dtype == torch.float64:
        return weight * F.rms_norm(x.float(), weight.shape, eps=eps).to(x.dtype)
    return F.rms_norm(x, weight.shape, weight, eps)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x `[H, N, D]`, halves paired: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def _layer(layer: nn.Module) -> Layer:
    attention = layer.self_attn
    mlp = layer.mlp
    norms = [
        getattr(attention, name).weight if hasattr(attention, name) else None
        for name in ("q_norm", "k_norm")
    ]
    return Layer(
        layer.input_layernorm.weight,
        stacked(attention.q_proj, attention.k_proj, attention.v_proj),
        *norms,
        stacked(attention.o_proj),
        layer.post_attention_layernorm.weight,
        stacked(mlp.gate_proj, mlp.up_proj),
        stacked(mlp.down_proj),
    )
