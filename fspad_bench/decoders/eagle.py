"""EAGLE's draft network (Li et al. 2024, arXiv 2401.15077) on EAGLE-2's dynamic tree (arXiv
2406.16858).

The next feature is predicted from the last feature f and the embedding e of the token that was
sampled from it. One vector is both the feature for the next draft step and what the LM head reads.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fspad_bench.drafts.drafter import HeadDrafter
from fspad_bench.drafts.fused import Fuse
from fspad_bench.drafts.network import DraftNetwork
from fspad_bench.drafts.shape import Shape
from fspad_bench.engine.cpu.linear import stacked
from fspad_bench.engine.cpu.native import Native
from fspad_bench.engine.cpu.torch_ops import TorchOps


class Fusion(nn.Module):
    """z = W_fc [e; f] + b.    e, f, z: [..., d]"""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * shape.d, shape.d)

    def forward(self, e: Tensor, f: Tensor) -> Tensor:
        return self.fc(torch.cat([e, f], dim=-1))

    def fused(self, ops: Native | TorchOps) -> Fuse:
        """Return `forward` over packed weights."""
        fc = stacked(self.fc)
        return lambda e, f: fc(torch.cat([e, f], dim=-1))


class EagleNetwork(DraftNetwork):
    """z -> decoder layer without an input norm -> h, which is both outputs."""

    architecture = "eagle"
    published: ClassVar[dict[str, str]] = {"fuse.fc.weight": "fc.weight", "fuse.fc.bias": "fc.bias"}

    @classmethod
    def build_fusion(cls, shape: Shape) -> Fusion:
        return Fusion(shape)


class Eagle(HeadDrafter):
    """EAGLE with EAGLE-2's tree. Options are those of `HeadDrafter`."""

    network = EagleNetwork
