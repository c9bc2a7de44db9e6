"""FSPAD (Gui et al. 2024, arXiv 2408.15562), in the order of its paper; formulas as its authors
released them.

EAGLE predicts the target's next feature f_{i+1} from the feature f_i (the hidden state after the
final norm) and the embedding e_{i+1} of the token that was sampled from it, by one decoder layer.
FSPAD changes the two ends of that layer:

- *Feature sampling* (section 3.2): f_i does not say which token was drawn, so e_{i+1} gates the
  fused input in the wide space of a SwiGLU before the layer.
- *Partial alignment distillation* (section 3.3): one vector cannot both match the target's feature
  and give confident logits, so the last projection is doubled. h_logit feeds the LM head, h_feature
  the next draft step, and each is trained for its own purpose (`training.losses`).

How FSPAD drafts, level by level (`drafts.trees.dynamic`, EAGLE-2's tree):

1. Absorb: each token committed since the last step enters the draft's cache as a row
   (f_i, e_{i+1}): the target's feature of the token before it, and its own embedding. Row i
   predicts token i + 2, so the last row's output is the root's: it predicts what follows the last
   committed token.
2. Children: logits = LM head(h_logit), over the draft vocabulary. At temperature T the noise T * G
   of the children's position is added (`drafting=coupled`), the very noise that the target's choice
   will meet, so that the draft guesses the token that the target will draw. The root, and below it
   each node that is expanded, gets its top-k children.
3. Expand: the top-k most likely paths of a level are drafted on. A node's row is its *parent's*
   h_feature, in place of the target's feature, which does not exist yet, and its own embedding e.
4. Stop at the tree's depth (`tree=fixed`), or when another level does not pay (`tree=auto`). The
   most likely candidates of all levels, with their ancestors, are the tree.

d is the hidden size, m the width of the target's MLP.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fspad_bench.drafts.drafter import HeadDrafter
from fspad_bench.drafts.fused import Fuse
from fspad_bench.drafts.network import DraftNetwork, DraftOutput, Norm, Output
from fspad_bench.drafts.shape import Shape
from fspad_bench.engine.cpu.linear import stacked
from fspad_bench.engine.cpu.native import Native
from fspad_bench.engine.cpu.torch_ops import TorchOps


class FeatureSampling(nn.Module):
    """x = z + W_down(silu(W_gate e) * W_up norm(z)),  z = W_fc [e; f] + b.    e, f, z, x: [..., d]

    The gate sees the raw embedding alone.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * shape.d, shape.d)
        self.norm = Norm(shape.d, shape.eps)
        self.gate = nn.Linear(shape.d, shape.m, bias=False)
        self.up = nn.Linear(shape.d, shape.m, bias=False)
        self.down = nn.Linear(shape.m, shape.d, bias=False)

    def forward(self, e: Tensor, f: Tensor) -> Tensor:
        z = self.fc(torch.cat([e, f], dim=-1))
        return z + self.down(F.silu(self.gate(e)) * self.up(self.norm(z)))

    def fused(self, ops: Native | TorchOps) -> Fuse:
        """Return `forward` over packed weights."""
        fc = stacked(self.fc)
        gate = stacked(self.gate)
        up = stacked(self.up)
        down = stacked(self.down)
        weight = self.norm.weight
        eps = self.norm.eps
        assert eps is not None

        def fuse(e: Tensor, f: Tensor) -> Tensor:
            z = fc(torch.cat([e, f], dim=-1))
            g = F.silu(gate(e))
            _, n = ops.add_norm(z, None, weight, eps)
            return z.add_(down(g.mul_(up(n))))

        return fuse


class SplitOutput(Output):
    """[u_1; u_2] = W_down(silu(W_gate n) * W_up n), n = norm(a);  h_logit = a + u_1,  h_feature = a
    + u_2.

    a, h_logit, h_feature: [..., d]. W_down is doubled; both outputs keep the residual a.
    """

    parts = 2

    def outputs(self, a: Tensor, update: Tensor) -> DraftOutput:
        to_logit, to_feature = update.chunk(2, dim=-1)
        return DraftOutput(h_logit=a + to_logit, h_feature=a + to_feature)


class FspadNetwork(DraftNetwork):
    """Feature sampling -> decoder layer without an input norm -> h_logit and h_feature."""

    architecture = "fspad"
    published: ClassVar[dict[str, str]] = {
        "fuse.fc.weight": "fc.fc.weight",
        "fuse.fc.bias": "fc.fc.bias",
        "fuse.norm.weight": "fc.post_attention_layernorm.weight",
        "fuse.gate.weight": "fc.mlp.gate_proj.weight",
        "fuse.up.weight": "fc.mlp.up_proj.weight",
        "fuse.down.weight": "fc.mlp.down_proj.weight",
    }

    @classmethod
    def build_fusion(cls, shape: Shape) -> FeatureSampling:
        return FeatureSampling(shape)

    @classmethod
    def build_output(cls, shape: Shape) -> SplitOutput:
        return SplitOutput(shape)


class Fspad(HeadDrafter):
    """FSPAD with EAGLE-2's tree. Options are those of `HeadDrafter`."""

    network = FspadNetwork
