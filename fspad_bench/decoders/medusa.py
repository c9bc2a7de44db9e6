"""Medusa (Cai et al. 2024, arXiv 2401.10774): several heads on the target's last hidden state, each
of which predicts a token further on.

    h_k = H + silu(W_k H),   k = 0, 1, ...        H, h_k: [..., d]

H is the state that the root was sampled from, and h_k predicts the token k + 1 positions after the
root. A head does not know what the heads before it drafted, so a path's chance is the product of
its tokens' chances, and the tree holds the likeliest paths of that product; `top_k` of a level are
followed further. At T > 0 each head's logits get the noise of its own position.

What differs from its authors' release:

- Theirs have an LM head each, d V weights. Here h_k goes through the target's LM head, over the
  draft vocabulary; W_k starts at 0, which is where theirs start too.
- Theirs verify by typical acceptance, which is lossy. Here the rule is `match`, as everywhere.
- The tree is chosen anew in every step; theirs is fixed.
- The loss is cross-entropy with the target's distribution, not with the text's tokens. The target
  learns nothing (Medusa-1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from fspad_bench.drafts.drafter import HeadDrafter
from fspad_bench.drafts.parallel import ParallelNetwork
from fspad_bench.drafts.shape import Shape
from fspad_bench.engine.cpu.linear import stacked

HEADS = 4


class MedusaNetwork(ParallelNetwork):
    """h_k = H + silu(W_k H)."""

    architecture = "medusa"

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        blocks = [nn.Linear(shape.d, shape.d, bias=False) for _ in range(shape.levels)]
        for block in blocks:
            nn.init.zeros_(block.weight)
        self.blocks = nn.ModuleList(blocks)

    @classmethod
    def shape_for(cls, config: PreTrainedConfig) -> Shape:
        return replace(Shape.of_target(config), levels=HEADS)

    def level(self, f: Tensor, level: int) -> Tensor:
        return f + F.silu(self.blocks[level](f))

    def packed(self) -> Callable[[Tensor, int], Tensor]:
        blocks = [stacked(cast(nn.Linear, block)) for block in self.blocks]
        return lambda f, level: f + F.silu(blocks[level](f))


class Medusa(HeadDrafter):
    """Medusa's heads. Options are those of `HeadDrafter`; `depth` is at most the heads' number."""

    network = MedusaNetwork
