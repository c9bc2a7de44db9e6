"""A draft network's step, fused: the arithmetic of `network` over its own weights in as few
operations as it takes.

A step is small and its operations are many: two fifths of its time is spent between them. Products
of one input are one product over stacked weights, what lies between the products is compiled where
it can be (`engine.cpu.native`), and only the rows that are needed are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fspad_bench.drafts.network import DraftNetwork, DraftOutput
from fspad_bench.engine.attention import HeadShape, rotate
from fspad_bench.engine.cpu import native
from fspad_bench.engine.cpu.layer import CompiledLayer
from fspad_bench.engine.cpu.linear import stacked
from fspad_bench.engine.cpu.native import Native
from fspad_bench.engine.cpu.torch_ops import TorchOps

Fuse = Callable[[Tensor, Tensor], Tensor]
"""(e, f) `[N, d]` -> x `[N, layer_inputs d]`."""


class Fusable(Protocol):
    """A fusion module of a draft network."""

    def fused(self, ops: Native | TorchOps) -> Fuse:
        """Return its arithmetic over packed weights."""


class FusedNetwork:
    """Rows e, f, a are `[N, d]`, x what the fusion makes of e and f.

    Keys and values `[H_kv, N, D]`; a rope belongs to the rows' positions.
    """

    def __init__(self, network: DraftNetwork) -> None:
        attention = network.attention
        output = network.output
        self.shape = network.shape
        self.network = network
        self.residual = network.residual
        self.enter = network.enter
        self.conclude = network.packed_conclude()
        self.q = stacked(attention.q)
        self.kv = stacked(attention.k, attention.v)
        self.o = stacked(attention.o)
        self.gate_up = stacked(output.gate, output.up)
        self.down = stacked(output.down)
        self.norm = output.norm.weight
        compiled = native.fitting(self.norm, self.shape.d, self.down.in_features)
        self.ops: Native | TorchOps = compiled or TorchOps(_norm)
        self.compiled_attention = compiled if native.attends(self.shape.head_dim) else None
        self.layer = self._layer()
        self.fuse: Fuse = network.fuse.fused(self.ops)
        self.join = stacked(network.join) if network.join is not None else None

    def _layer(self) -> CompiledLayer | None:
        """Return all from the fusion to the outputs as one call, None where torch takes part."""
        products = [self.q, self.kv, self.o, self.gate_up, self.down]
        functions = self.compiled_attention
        if functions is None or not CompiledLayer.serves(functions, products):
            return None
        shape = self.shape
        heads = HeadShape(shape.heads, shape.kv_heads, shape.head_dim, shape.head_dim**-0.5)
        return CompiledLayer(functions, products, self.norm, heads, shape.eps)

    def read(self, states: Tensor) -> Tensor:
        """Return f from what the target's session hands out for these rows."""
        return states if self.join is None else self.join(states)

    def query(self, x: Tensor, rope: Tensor) -> Tensor:
        """Return rotated queries `[H, N, D]`."""
        return rotate(self._split(self.q(x)), rope)

    def keys_values(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotated keys, and values, for the cache."""
        k, v = self._split(self.kv(x)).split(self.shape.kv_heads)
        return rotate(k, rope), v

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from queries `[H, N, D]` over keys and values `[H_kv, L, D]`, output-projected:
        `[N, d]`.

        `mask` is `[H / H_kv * N, L]`, added to the scores.
        """
        # torch's fast CPU attention needs a batch dimension; a group's heads are folded into rows
        folded = query.reshape(1, self.shape.kv_heads, -1, self.shape.head_dim)
        seen = F.scaled_dot_product_attention(folded, keys[None], values[None], attn_mask=mask)
        return self.project(seen.reshape(query.shape))

    def attend_compiled(
        self,
        x: Tensor,
        count: int,
        rope: Tensor,
        keys: Tensor,
        values: Tensor,
        start: int,
        visible: Tensor | None,
    ) -> Tensor:
        """Write the entries of x to the slots from `start` on and attend from its last `count`
        rows: `[count, d]`.
        """
        assert self.compiled_attention is not None
        q = self.heads(self.q(x[-count:]))
        kv = self.heads(self.kv(x))
        scale = self.shape.head_dim**-0.5
        return self.o(
            self.compiled_attention.attend(q, kv, rope, keys, values, start, visible, scale)
        )

    def project(self, seen: Tensor) -> Tensor:
        """Apply the output projection: `[H, N, D]` -> `[N, d]`."""
        return self.o(seen.transpose(0, 1).flatten(-2))

    def output(self, residual: Tensor, seen: Tensor) -> DraftOutput:
        """Run the last half-layer on the residual `[N, d]`, which may be overwritten, and
        attention's output.
        """
        a, n = self.ops.add_norm(residual, seen, self.norm, self.shape.eps)
        return self.outputs(a, self.down(self.ops.gated(self.gate_up(n))))

    def outputs(self, residual: Tensor, update: Tensor) -> DraftOutput:
        """Return the outputs from the residual stream and the MLP's output."""
        return self.network.output.outputs(residual, update)

    def rope(self, positions: Tensor) -> Tensor:
        """Return cosines, and sines with the sign of their half, at positions `[N]`.

        `[2, N, D]`.
        """
        cos, sin = self.network.rope(positions)
        return torch.stack([cos.repeat(1, 2), torch.cat([-sin, sin], dim=-1)])

    def _split(self, x: Tensor) -> Tensor:
        return self.heads(x).transpose(0, 1)

    def heads(self, x: Tensor) -> Tensor:
        """`[N, H D]` -> `[N, H, D]`."""
        return x.unflatten(-1, (-1, self.shape.head_dim))


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)
