"""A draft network's step, lean: the arithmetic of `network` over its own weights, in as few operations as it takes.

A step is small and its operations are many: two fifths of its time is spent between them. Products of one input are
one product over stacked weights, what lies between the products is compiled where it can be (`native`), and nothing is
computed of rows that nobody asks about.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fspad_bench.drafts.network import DraftNetwork, DraftOutput
from fspad_bench.engine.cpu import native
from fspad_bench.engine.cpu.linear import stacked
from fspad_bench.engine.cpu.native import Plain
from fspad_bench.engine.forward import rotated


class LeanNetwork:
    """Rows e, f, x, a are `[N, d]`; keys and values `[H_kv, N, D]`; a rope is of the rows' positions."""

    def __init__(self, network: DraftNetwork) -> None:
        fusion = network.fuse
        attention = network.attention
        output = network.output
        self.shape = network.shape
        self.network = network
        self.fc = stacked(fusion.fc)
        self.q = stacked(attention.q)
        self.o = stacked(attention.o)
        self.kv = stacked(attention.k, attention.v)
        self.gate_up = stacked(output.gate, output.up)
        self.down = stacked(output.down)
        self.norm = output.norm.weight
        self.parts = native.fitting(self.norm, self.shape.d, self.shape.m) or Plain(_norm)
        self.attends = self.parts.compiled and native.attends(self.shape.head_dim)
        if self.shape.feature_sampling:
            self.fusion_norm = fusion.norm.weight
            self.fusion_gate = stacked(fusion.gate)
            self.fusion_up = stacked(fusion.up)
            self.fusion_down = stacked(fusion.down)

    def fuse(self, e: Tensor, f: Tensor) -> Tensor:
        """The input of the decoder layer, from a token's embedding and the feature before it."""
        z = self.fc(torch.cat([e, f], dim=-1))
        if not self.shape.feature_sampling:
            return z
        gate = F.silu(self.fusion_gate(e))
        _, n = self.parts.add_norm(z, None, self.fusion_norm, self.shape.eps)
        return z.add_(self.fusion_down(gate.mul_(self.fusion_up(n))))

    def query(self, x: Tensor, rope: Tensor) -> Tensor:
        """`[H, N, D]`."""
        return rotated(self._split(self.q(x)), *rope)

    def keys_values(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """Of these rows, for the cache."""
        k, v = self._split(self.kv(x)).split(self.shape.kv_heads)
        return rotated(k, *rope), v

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """What each query sees of keys and values of any number, projected: `[N, d]`.

        `mask` is `[H / H_kv * N, L]`, added to the scores.
        """
        folded = query.reshape(
            1, self.shape.kv_heads, -1, self.shape.head_dim
        )  # fused on a CPU for a batch only
        seen = F.scaled_dot_product_attention(folded, keys[None], values[None], attn_mask=mask)
        return self.project(seen.reshape(query.shape))

    def see(
        self,
        x: Tensor,
        asked: int,
        rope: Tensor,
        keys: Tensor,
        values: Tensor,
        start: int,
        visible: Tensor | None,
    ) -> Tensor:
        """All of that at once, where `attends`: rows of x to the cache from `start` on, what the last few see of it."""
        q = self.heads(self.q(x[-asked:]))
        kv = self.heads(self.kv(x))
        scale = self.shape.head_dim**-0.5
        return self.o(self.parts.attend(q, kv, rope, keys, values, start, visible, scale))

    def project(self, seen: Tensor) -> Tensor:
        """`[H, N, D]` -> `[N, d]`."""
        return self.o(seen.transpose(0, 1).flatten(-2))

    def output(self, x: Tensor, seen: Tensor) -> DraftOutput:
        """The last half-layer, on the decoder layer's input, which it may overwrite, and what attention made of it."""
        a, n = self.parts.add_norm(x, seen, self.norm, self.shape.eps)
        made = self.down(self.parts.gated(self.gate_up(n)))
        if not self.shape.split_output:
            h = a + made
            return DraftOutput(h, h)
        d = self.shape.d
        return DraftOutput(a + made[..., :d], a + made[..., d:])

    def rope(self, positions: Tensor) -> Tensor:
        """positions `[N]` -> cosines, and sines with the sign of their half: `[2, N, D]`."""
        cos, sin = self.network.rope(positions)
        return torch.stack([cos.repeat(1, 2), torch.cat([-sin, sin], dim=-1)])

    def _split(self, x: Tensor) -> Tensor:
        return self.heads(x).transpose(0, 1)

    def heads(self, x: Tensor) -> Tensor:
        """`[N, H D]` -> `[N, H, D]`."""
        return x.unflatten(-1, (-1, self.shape.head_dim))


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)
