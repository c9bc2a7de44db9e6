"""The fused forward of a target: the stock layers' arithmetic over stacked weights, without the
bookkeeping.

- At batch 1 a small model spends a third of a step on bookkeeping: kwargs handed down, masks
  considered, three products where one would do. Here the projections that read the same input are
  one product over their stacked weights (the model's parameters become views of them), rotary
  tables are computed once, entries are written where they stay, and all that lies between two
  attentions is one compiled call where it can be (`cpu.native`).
- In what a family differs from Llama is read from its description (`architecture`).
- A plan of layers leaves attention or MLP sublayers out; what is left is fused in the same way.
- Every decoder runs it, vanilla first of all. It equals the stock forward (float64, 1e-9); loading
  checks that again on the model at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from fspad_bench.core.protocols import ALL, LayerPlan
from fspad_bench.engine.architecture import (
    ARCHITECTURES,
    Architecture,
    activation_of,
    architecture_of,
    head_shape,
    rope_types,
)
from fspad_bench.engine.attention import Attend
from fspad_bench.engine.cpu import native
from fspad_bench.engine.cpu.linear import STOCK, Matrix, stacked
from fspad_bench.engine.cpu.native import Native, Tail
from fspad_bench.engine.cpu.torch_ops import ACTIVATIONS, TorchOps

NAME = "fused"
SPARE = 1024
PLANS = 256  # parts of the layers whose forwards are kept at a time


class Layer(NamedTuple):
    """One decoder layer's weights in the order of their use.

    Norms of queries and keys, and of what a sublayer adds, where the family has them.
    """

    norm: Tensor
    qkv: Matrix
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Matrix
    out_norm: Tensor | None
    mlp_norm: Tensor
    gate_up: Matrix
    down: Matrix
    down_norm: Tensor | None


@dataclass
class TailParts:
    """All between two attentions: output projection, MLPs, the next norm and projections.

    `out` is None before the first attention, where x is the embedding; `following` is None after
    the last, where the normed x is the result. Between two layers of a whole model there is one
    MLP.
    """

    out: Matrix | None
    out_norm: Tensor | None = None
    mlps: list[Layer] = field(default_factory=list)
    norm: Tensor | None = None
    following: Matrix | None = None


class Chain(NamedTuple):
    """A plan's forward: `tails[0]` leads to the first attention, `tails[k]` from the k-th to the
    next.

    `attentions` are the layers whose attention runs, in order.
    """

    attentions: tuple[int, ...]
    tails: tuple[Tail, ...]


class FusedForward:
    """tokens `[N]` -> features `[N, d]` after the final norm.

    What tokens attend to is the attention backend's.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        base = model.base_model
        config = model.config
        family = architecture_of(config)
        self.embed = base.embed_tokens
        self.embedding = self.embed.weight
        self.final_norm = base.norm.weight
        self.eps = config.rms_norm_eps
        self.shape = head_shape(model)
        of_layers = rope_types(config)
        self.rope = RopeTable(base.rotary_emb, self.embedding, self.shape.dim, of_layers)
        compiled = native.fitting(self.embedding, config.hidden_size, config.intermediate_size)
        self.norm = partial(rms_norm, offset=family.norm_offset)
        plain = TorchOps(self.norm, activation_of(config))
        self.ops: Native | TorchOps = (
            compiled.of(family.norm_offset, plain.activation) if compiled else plain
        )
        self.name = f"{NAME}, {native.NAME if compiled else STOCK}"
        self.layers = [_layer(layer, family) for layer in base.layers]
        self._chains: dict[LayerPlan, Chain] = {}
        self.chain(ALL)

    @property
    def matrices(self) -> list[Matrix]:
        """The products of all layers."""
        return [m for x in self.layers for m in (x.qkv, x.out, x.gate_up, x.down)]

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether this is the model's arithmetic.

        A listed architecture, plain weights, one device.
        """
        base = model.base_model
        activation = activation_of(model.config)
        places = {(p.device, p.dtype) for p in base.parameters()}
        known = model.config.model_type in ARCHITECTURES
        is_plain = known and all(type(product) is nn.Linear for product in _products(base))
        return is_plain and len(places) == 1 and activation in ACTIVATIONS

    def chain(self, plan: LayerPlan) -> Chain:
        """Return the fused forward of a plan, built on first use; old ones of parts are dropped."""
        if plan not in self._chains:
            if len(self._chains) > PLANS:
                del self._chains[next(old for old in self._chains if not old.whole)]
            self._chains[plan] = self._fuse(plan)
        return self._chains[plan]

    def __call__(
        self,
        tokens: Tensor,
        rope: Tensor,
        attend: Attend,
        plan: LayerPlan = ALL,
        capture: Sequence[int] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Run a plan on tokens `[N]`, `rope` that of their positions; features, and the captured
        hidden states.

        `capture` counts as transformers' `output_hidden_states` does: 0 is the embedding, k the
        output of layer k - 1, the number of layers the normed features. Only a whole plan can be
        captured.
        """
        chain = self.chain(plan)
        hidden: dict[int, Tensor] = {}
        x = self.embed(tokens)
        if 0 in capture:
            hidden[0] = x.clone()
        x, projections = chain.tails[0](x, None)
        for layer, tail in zip(chain.attentions, chain.tails[1:], strict=True):
            rows = projections.unflatten(-1, (-1, self.shape.dim))
            x, projections = tail(
                x, attend(layer, self._normed(layer, rows), self.rope.part(rope, layer))
            )
            if layer + 1 in capture:
                hidden[layer + 1] = x.clone()  # the next tail writes to x
        hidden[len(self.layers)] = projections
        return projections, [hidden[index] for index in capture]

    def _normed(self, layer: int, rows: Tensor) -> Tensor:
        """Apply the query and key norms, if the layer has them, to projections `[N, H + 2 H_kv,
        D]`.
        """
        weights = self.layers[layer]
        if weights.q_norm is None or weights.k_norm is None:
            return rows
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        q, k, v = rows.split([heads, kv_heads, kv_heads], dim=1)
        q = self.norm(q, weights.q_norm, self.eps)
        k = self.norm(k, weights.k_norm, self.eps)
        return torch.cat([q, k, v], dim=1)

    def _fuse(self, plan: LayerPlan) -> Chain:
        every = range(len(self.layers))
        attentions = tuple(i for i in every if i not in plan.skip_attention)
        parts = [TailParts(None)]
        for number, layer in enumerate(self.layers):
            if number not in plan.skip_attention:
                parts[-1].norm = layer.norm
                parts[-1].following = layer.qkv
                parts.append(TailParts(layer.out, layer.out_norm))
            if number not in plan.skip_mlp:
                parts[-1].mlps.append(layer)
        parts[-1].norm = self.final_norm
        return Chain(attentions, tuple(self._tail(part) for part in parts))

    def _tail(self, parts: TailParts) -> Tail:
        assert parts.norm is not None
        plain = self._plain_tail(parts)
        matrices = [
            parts.out,
            parts.following,
            *(m for mlp in parts.mlps for m in (mlp.gate_up, mlp.down)),
        ]
        packed = [matrix.packed for matrix in matrices if matrix is not None]
        types = {None if weight is None else weight.dtype for weight in packed}
        if not isinstance(self.ops, Native) or len(types) != 1 or None in types:
            return plain
        compiled = self.ops.tail(
            (*_packed(parts.out), parts.out_norm),
            [(m.mlp_norm, *_packed(m.gate_up), *_packed(m.down), m.down_norm) for m in parts.mlps],
            parts.norm,
            _packed(parts.following),
            (
                parts.out.in_features if parts.out else 0,
                len(parts.norm),
                self.layers[0].down.in_features,
                parts.following.out_features if parts.following else 0,
            ),
            self.eps,
        )
        return lambda x, seen: (compiled if len(x) <= native.ROWS else plain)(x, seen)

    def _plain_tail(self, parts: TailParts) -> Tail:
        ops = self.ops
        norm = parts.norm
        assert norm is not None

        def run(x: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
            delta = parts.out(seen) if parts.out and seen is not None else None
            if delta is not None and parts.out_norm is not None:
                _, delta = ops.add_norm(delta, None, parts.out_norm, self.eps)
            for mlp in parts.mlps:
                x, n = ops.add_norm(x, delta, mlp.mlp_norm, self.eps)
                delta = mlp.down(ops.gated(mlp.gate_up(n)))
                if mlp.down_norm is not None:
                    _, delta = ops.add_norm(delta, None, mlp.down_norm, self.eps)
            x, n = ops.add_norm(x, delta, norm, self.eps)
            return x, parts.following(n) if parts.following else n

        return run


class RopeTable:
    """Rotary tables of positions, computed once: cosines, and sines with the sign of their half.

    Where types of layers have embeddings of their own, the tables of all types are stacked along
    the first dimension, and `part` is a layer's.
    """

    def __init__(
        self, rotary: nn.Module, embedding: Tensor, head_dim: int, of_layers: Sequence[str] = ()
    ) -> None:
        """`of_layers`: the type of each layer; empty: all have the same embedding."""
        self.rotary = rotary
        self.embedding = embedding
        self.head_dim = head_dim
        self.of_layers = of_layers
        self.types = sorted(set(of_layers))
        self.table = embedding.new_empty(2 * max(1, len(self.types)), 0, head_dim)

    def of(self, positions: Sequence[int]) -> Tensor:
        """Return the rows of these positions, `[2 T, N, D]` for T types."""
        first = positions[0]
        end = max(positions) + 1
        table = self.below(end)
        if positions == range(first, end) or list(positions) == list(range(first, end)):
            return table[:, first:end]
        return table[:, torch.tensor(positions, device=self.embedding.device)]

    def below(self, end: int) -> Tensor:
        """Return the rows of every position below `end`, and some more."""
        if end > self.table.shape[1]:
            every = torch.arange(end + SPARE, device=self.embedding.device)[None]
            pairs = [self._pair(every, [kind]) for kind in self.types] or [self._pair(every, [])]
            self.table = torch.cat(pairs)
        return self.table

    def part(self, rope: Tensor, layer: int) -> Tensor:
        """Return the rows of a layer's own embedding, `[2, N, D]`."""
        if not self.types:
            return rope
        first = 2 * self.types.index(self.of_layers[layer])
        return rope[first : first + 2]

    def _pair(self, positions: Tensor, kind: Sequence[str]) -> Tensor:
        cos, sin = self.rotary(self.embedding[:1], positions, *kind)
        sin[..., : self.head_dim // 2].neg_()
        return torch.cat([cos, sin])


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """Apply an RMS norm to the last dimension, in float32 even for float64 input, as the stock one
    does; with an offset to the weight it rounds once, at its end.
    """
    if offset:
        return (F.rms_norm(x.float(), weight.shape, eps=eps) * (weight.float() + offset)).to(
            x.dtype
        )
    if x.dtype == torch.float64:
        return weight * F.rms_norm(x.float(), weight.shape, eps=eps).to(x.dtype)
    return F.rms_norm(x, weight.shape, weight, eps)


def _packed(matrix: Matrix | None) -> tuple[Tensor | None, Tensor | None]:
    return (matrix.packed, matrix.bias) if matrix else (None, None)


def _layer(layer: Any, family: Architecture) -> Layer:
    attention = layer.self_attn
    mlp = layer.mlp
    return Layer(
        norm=layer.input_layernorm.weight,
        qkv=stacked(attention.q_proj, attention.k_proj, attention.v_proj),
        q_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        out=stacked(attention.o_proj),
        out_norm=_norm(layer, family.after_attention),
        mlp_norm=getattr(layer, family.mlp_norm).weight,
        gate_up=stacked(mlp.gate_proj, mlp.up_proj),
        down=stacked(mlp.down_proj),
        down_norm=_norm(layer, family.after_mlp),
    )


def _products(base: Any) -> Iterator[Any]:
    """Yield the modules that a layer's products are made of: adapters and quantisers wrap them."""
    for layer in base.layers:
        for part, names in (
            (layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")),
            (layer.mlp, ("gate_proj", "up_proj", "down_proj")),
        ):
            yield from (getattr(part, name, None) for name in names)


def _norm(layer: Any, name: str) -> Tensor | None:
    return getattr(layer, name).weight if name else None
