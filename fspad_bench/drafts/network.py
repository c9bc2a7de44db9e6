"""The parts that the draft networks of the EAGLE family share: the output MLP, and the whole. Their
`shape` and their `attention` are beside it.

A draft network predicts what follows from the target's last feature f and the embedding e of the
token that was sampled from it, by one decoder layer: read -> fuse -> attention -> output. What is a
method's own, the fusion and the output, stands in its file of `decoders/`.

- d is the hidden size, m the MLP's width, H heads, H_kv key-value heads, D their width.
- Row i reads (f_i, e_{i+1}), stands at position i, and predicts f_{i+1} and token i + 2.
- f is the hidden state after the target's final norm, or one linear map of k captured states. Below
  the root, where the target has computed nothing yet, it is the h_feature of the row before.
- Architectures are registered by name in the entry-point group `fspad_bench.architectures`; the
  name stands in a head's file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from fspad_bench.drafts.attention import Attention
from fspad_bench.drafts.shape import Shape
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.util import registry
from fspad_bench.util.errors import BenchError, near

GROUP = "fspad_bench.architectures"


class DraftOutput(NamedTuple):
    """`h_logit` feeds the LM head, `h_feature` the next draft step; both `[..., d]`."""

    h_logit: Tensor
    h_feature: Tensor


class Norm(nn.RMSNorm):
    """RMSNorm in the precision of its input, under mixed-precision training too."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


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


class HeadNetwork(nn.Module, ABC):
    """The network of a head, whatever it computes: it guesses tokens from the target's states.

    A `DraftNetwork` is stepped through a tree level by level; a `parallel.ParallelNetwork` predicts
    all levels at once.
    """

    architecture: ClassVar[str] = ""
    published: ClassVar[dict[str, str]] = {}
    """The weights of its own by the names under which its authors publish them: ours -> theirs."""
    reads_states: ClassVar[bool] = True
    """Whether f is what the target computed; else it is the embedding of the token before e's."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.join: nn.Linear | None = None
        if shape.capture:
            self.join = nn.Linear(len(shape.capture) * shape.d, shape.d, bias=False)
        self.lm_head: nn.Linear | None = None
        if shape.vocabulary:
            self.lm_head = nn.Linear(shape.d, shape.vocabulary, bias=False)

    @property
    def on_device(self) -> bool:
        """Whether whole steps of it can be captured on a device (`trees.on_device`)."""
        return False

    @classmethod
    def shape_for(cls, config: PreTrainedConfig) -> Shape:
        """Return the shape that is trained for a target."""
        return Shape.of_target(config)

    @classmethod
    def build(cls, shape: Shape, target: TransformersTarget) -> HeadNetwork:
        """Return a network of this shape for a target, with random weights unless the target's own
        layers are what it is made of.
        """
        return cls(shape)

    def read(self, states: Tensor) -> Tensor:
        """Return f `[..., d]` from what the target's session hands out, `[..., k d]` or `[...,
        d]`.
        """
        return states if self.join is None else self.join(states)

    def start(self, target: TransformersTarget) -> None:
        """Set weights that are better not random when training starts: none."""

    def head_rows(self, weight: Tensor, vocabulary: Tensor) -> Tensor:
        """Return the LM head over the draft vocabulary `[S]`: its own, or the target's rows.

        weight `[V, d]` is the target's.
        """
        return weight[vocabulary] if self.lm_head is None else self.lm_head.weight

    @abstractmethod
    def forward(self, e: Tensor, states: Tensor, rows: Tensor) -> DraftOutput:
        """Run the first draft level over whole sequences with teacher forcing.

        e `[B, L, d]`, states `[B, L, k d]`, causal; outputs of the chosen rows `[B, L]`.
        """

    @abstractmethod
    def unrolled(self, e: Tensor, states: Tensor, steps: int) -> list[DraftOutput]:
        """Run `steps` draft levels over whole sequences, all rows: `[B, L, d]` each.

        Row i of level j is what a draft of that depth predicts there. One with fewer than j rows
        before it is meaningless.
        """


class DraftNetwork(HeadNetwork):
    """read -> fuse -> attention -> output.

    A subclass names its architecture, its fusion and its output.
    """

    published_layer: ClassVar[str] = "layers.0"
    """The name of the decoder layer in that layout."""
    layer_inputs: ClassVar[int] = 1
    """How many vectors of width d the fusion hands to attention side by side."""
    learns_through: ClassVar[bool] = False
    """Whether a draft level's loss reaches the levels whose outputs it read (EAGLE-3), or each
    learns for itself (HASS).
    """
    context: ClassVar[int] = 1
    """How many tokens the fusion reads: e is the embeddings of the last ones side by side."""
    keeps_states: ClassVar[bool] = False
    """Whether f has an entry of its own in attention, one position before that of its row."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.fuse: Any = self.build_fusion(shape)
        self.attention = Attention(shape, self.layer_inputs)
        self.output = self.build_output(shape)

    @property
    def on_device(self) -> bool:
        """Whether a row is all that the device's builder knows of: one token, f, one entry."""
        kind = type(self)
        plain = kind.enter is DraftNetwork.enter and kind.conclude is DraftNetwork.conclude
        return plain and self.context == 1 and not self.keeps_states

    @classmethod
    @abstractmethod
    def build_fusion(cls, shape: Shape) -> nn.Module:
        """Return the module (e, f) -> x `[..., layer_inputs d]`, attention's input.

        It has `fused(ops)`, the same for decoding (`fused.Fuse`).
        """

    @classmethod
    def build_output(cls, shape: Shape) -> Output:
        return Output(shape)

    def windows(self, e: Tensor) -> Tensor:
        """Return the last `context` embeddings of every row side by side, the latest last.

        `[..., L, d]` -> `[..., L, context d]`. The first row's stands for those before it.
        """
        length = e.shape[-2]
        padded = torch.cat([e[..., :1, :]] * (self.context - 1) + [e], dim=-2)
        parts = [padded[..., first : first + length, :] for first in range(self.context)]
        return torch.cat(parts, dim=-1)

    def enter(self, x: Tensor) -> Tensor:
        """Return what attention reads of x, or of f where it has an entry: the same."""
        return x

    def residual(self, x: Tensor, f: Tensor) -> Tensor:
        """Return what attention's output is added to, `[..., d]`: the fused input."""
        return x

    def conclude(self, output: DraftOutput, f: Tensor) -> DraftOutput:
        """Return the outputs of rows that read f: the same."""
        return output

    def packed_conclude(self) -> Callable[[DraftOutput, Tensor], DraftOutput]:
        """Return `conclude` over packed weights, where it has any of its own."""
        return self.conclude

    def forward(self, e: Tensor, states: Tensor, rows: Tensor) -> DraftOutput:
        """Run the first draft level (`HeadNetwork.forward`)."""
        f = self.read(states)
        x = self.fuse(e, f)
        rope = self.rope(torch.arange(e.shape[-2], device=e.device)).to(x.dtype)
        k, v = self.attention.keys_values(x, rope)
        a = self.residual(x, f) + self.attention.attend(x, rope, k, v)
        return self.output(a[rows])

    def unrolled(self, e: Tensor, states: Tensor, steps: int) -> list[DraftOutput]:
        """Run `steps` draft levels over whole sequences, all rows: `[B, L, d]` each.

        The first reads the target's states. Each later one reads what the one before predicted,
        shifted by a row, so row i is what a draft of that depth predicts there (HASS, Zhang et al.
        2024, arXiv 2408.15766; EAGLE-3's training-time test). A row with fewer than that many
        before it is meaningless.
        """
        rope = self.rope(torch.arange(e.shape[-2], device=e.device)).to(e.dtype)
        f = self.read(states)
        outputs: list[DraftOutput] = []
        ks: list[Tensor] = []
        vs: list[Tensor] = []
        for step in range(steps):
            if step:
                drafted = outputs[-1].h_feature
                drafted = drafted if self.learns_through else drafted.detach()
                f = F.pad(drafted[..., :-1, :], (0, 0, 1, 0)).to(f.dtype)
            x = self.fuse(e, f)
            k, v = self.attention.keys_values(x, rope.to(x.dtype))
            ks.append(k)
            vs.append(v)
            if step:
                seen = self.attention.attend_unrolled(x, rope.to(x.dtype), ks, vs)
            else:
                seen = self.attention.attend(x, rope.to(x.dtype), k, v)
            outputs.append(self.output(self.residual(x, f) + seen))
        return outputs

    def rope(self, positions: Tensor) -> Tensor:
        """Return cosines and sines of every frequency at positions `[N]`: `[2, N, D / 2]`."""
        half = self.shape.head_dim // 2
        steps = torch.arange(half, device=positions.device, dtype=torch.float64) / half
        angles = positions[:, None] * self.shape.rope_theta**-steps
        return torch.stack([angles.cos(), angles.sin()])


def architecture(name: str) -> type[HeadNetwork]:
    """Return a registered network class. Raises BenchError with the near match."""
    if name not in registry.claims(GROUP):
        raise BenchError(f"unknown draft network '{name}'", near(name, registry.names(GROUP)))
    return registry.resolve(GROUP, name)


def architectures() -> dict[str, type[HeadNetwork]]:
    """Return every registered network class that can be loaded by its name."""
    return registry.usable(GROUP)
