"""EAGLE-3 (Li et al. 2025, arXiv 2503.01840), on EAGLE-2's dynamic tree.

EAGLE predicts the target's next feature and reads its tokens off by the LM head. EAGLE-3 predicts
tokens alone, and changes what that goal had fixed:

- *Fused states*: f_i = W_fc [l_i; m_i; h_i], a low, a middle and a high hidden state of the target
  (`DraftNetwork.read`), since f no longer has to be what the next draft step predicts.
- *Layer input*: attention reads [norm_e(e); norm_f(f)], twice as wide; the residual stream is f.
- *Output*: the residual stream h after the layer is the f of the next draft step. The LM head reads
  norm(h). A published head has an LM head of its own, over its own vocabulary; one trained here
  uses the target's, so that a text's own tokens can join.
- *Training-time test*: the loss is cross-entropy against the target's distribution at every one of
  several draft levels, each of which reads the level before; there is no feature loss, and
  gradients flow through the levels (`DraftNetwork.unrolled`).

Below the root f is the parent's h, and everything else is EAGLE-2's. d is the hidden size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from fspad_bench.drafts.drafter import HeadDrafter
from fspad_bench.drafts.fused import Fuse
from fspad_bench.drafts.network import DraftNetwork, DraftOutput, Norm, Output
from fspad_bench.drafts.shape import Shape, low_mid_high
from fspad_bench.engine.architecture import norm_weight
from fspad_bench.engine.cpu.native import Native
from fspad_bench.engine.cpu.torch_ops import TorchOps
from fspad_bench.engine.target import TransformersTarget


class NormedPair(nn.Module):
    """x = [norm_e(e); norm_f(f)].    e, f: [..., d], x: [..., 2 d]"""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm_e = Norm(shape.d, shape.eps)
        self.norm_f = Norm(shape.d, shape.eps)

    def forward(self, e: Tensor, f: Tensor) -> Tensor:
        return torch.cat([self.norm_e(e), self.norm_f(f)], dim=-1)

    def fused(self, ops: Native | TorchOps) -> Fuse:
        """Return `forward`: there is no product in it."""
        return self.forward


class TokenOutput(Output):
    """h = a + u;  h_logit = norm(h), and h goes on to the next draft step.    a, u, h: [..., d]"""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.final = Norm(shape.d, shape.eps)

    def outputs(self, a: Tensor, update: Tensor) -> DraftOutput:
        h = a + update
        return DraftOutput(h_logit=self.final(h), h_feature=h)


class Eagle3Network(DraftNetwork):
    """Three hidden states -> f; [norm(e); norm(f)] -> decoder layer with residual f -> h."""

    architecture = "eagle3"
    published: ClassVar[dict[str, str]] = {
        "join.weight": "fc.weight",
        "fuse.norm_e.weight": "midlayer.input_layernorm.weight",
        "fuse.norm_f.weight": "midlayer.hidden_norm.weight",
        "output.final.weight": "norm.weight",
        "lm_head.weight": "lm_head.weight",
    }
    published_layer = "midlayer"
    layer_inputs = 2
    learns_through = True

    @classmethod
    def shape_for(cls, config: PreTrainedConfig) -> Shape:
        return replace(Shape.of_target(config), capture=low_mid_high(config.num_hidden_layers))

    @classmethod
    def build_fusion(cls, shape: Shape) -> NormedPair:
        return NormedPair(shape)

    @classmethod
    def build_output(cls, shape: Shape) -> TokenOutput:
        return TokenOutput(shape)

    def residual(self, x: Tensor, f: Tensor) -> Tensor:
        return f

    @torch.no_grad()
    def start(self, target: TransformersTarget) -> None:
        """Begin with the target's final norm, which its LM head expects."""
        assert isinstance(self.output, TokenOutput)
        self.output.final.weight.copy_(norm_weight(target.model))


class Eagle3(HeadDrafter):
    """EAGLE-3 with EAGLE-2's tree. Options are those of `HeadDrafter`."""

    network = Eagle3Network
