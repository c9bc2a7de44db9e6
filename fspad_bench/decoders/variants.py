"""Networks between EAGLE and FSPAD, for ablations: each half of FSPAD alone, and EAGLE with FSPAD's
parameter count. And FSPAD on what EAGLE-3 reads, which is published nowhere.

fspad-bench train --decoder wide --data my-data --output my-head
fspad-bench run --decoder wide=fspad_bench.decoders.variants:AnyHead -D wide.head=my-head --task all
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from fspad_bench.decoders.eagle import EagleNetwork
from fspad_bench.decoders.fspad import FeatureSampling, FspadNetwork, SplitOutput
from fspad_bench.drafts.drafter import HeadDrafter
from fspad_bench.drafts.fused import Fuse
from fspad_bench.drafts.network import DraftNetwork, DraftOutput, Norm, Output
from fspad_bench.drafts.shape import Shape, low_mid_high
from fspad_bench.engine.architecture import norm_weight
from fspad_bench.engine.cpu.native import Native
from fspad_bench.engine.cpu.torch_ops import TorchOps
from fspad_bench.engine.target import TransformersTarget


class FeatureSamplingNetwork(DraftNetwork):
    """FSPAD's fusion, EAGLE's output."""

    architecture = "feature-sampling"
    published = FspadNetwork.published

    @classmethod
    def build_fusion(cls, shape: Shape) -> FeatureSampling:
        return FeatureSampling(shape)


class PartialAlignmentNetwork(EagleNetwork):
    """EAGLE's fusion, FSPAD's split output."""

    architecture = "partial-alignment"

    @classmethod
    def build_output(cls, shape: Shape) -> SplitOutput:
        return SplitOutput(shape)


class WideNetwork(EagleNetwork):
    """EAGLE with a wider output MLP: as many parameters as FSPAD, the control that the paper does
    without.

    Feature sampling (3 d m) and a split output (d m) add 4 d m weights to EAGLE's 3 d m there.
    """

    architecture = "wide"

    @classmethod
    def build_output(cls, shape: Shape) -> Output:
        return Output(shape, width=shape.m + 4 * shape.m // 3)


class NormedSplitOutput(SplitOutput):
    """FSPAD's split output, with EAGLE-3's norm before the LM head: h_logit = norm(a + u_1)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.final = Norm(shape.d, shape.eps)

    def outputs(self, a: Tensor, update: Tensor) -> DraftOutput:
        out = super().outputs(a, update)
        return out._replace(h_logit=self.final(out.h_logit))


class NormedFeatureSampling(FeatureSampling):
    """FSPAD's feature sampling of norm(f), as EAGLE-3 norms what it reads.    e, f, x: [..., d]

    Hidden states of inner layers are orders of magnitude larger than features, and nothing bounds
    an h_feature without a feature loss. Without the norm training diverges.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.norm_f = Norm(shape.d, shape.eps)

    def forward(self, e: Tensor, f: Tensor) -> Tensor:
        return super().forward(e, self.norm_f(f))

    def fused(self, ops: Native | TorchOps) -> Fuse:
        """Return `forward` over packed weights."""
        fuse = super().fused(ops)
        return lambda e, f: fuse(e, self.norm_f(f))


class Fspad3Network(FspadNetwork):
    """FSPAD's feature sampling and split output on EAGLE-3's fused states, trained as EAGLE-3 is.

    Without a feature loss h_feature learns from the draft levels that read it.
    """

    architecture = "fspad3"
    published: ClassVar[dict[str, str]] = {}
    learns_through = True

    @classmethod
    def shape_for(cls, config: PreTrainedConfig) -> Shape:
        return replace(Shape.of_target(config), capture=low_mid_high(config.num_hidden_layers))

    @classmethod
    def build_fusion(cls, shape: Shape) -> NormedFeatureSampling:
        return NormedFeatureSampling(shape)

    @classmethod
    def build_output(cls, shape: Shape) -> NormedSplitOutput:
        return NormedSplitOutput(shape)

    @torch.no_grad()
    def start(self, target: TransformersTarget) -> None:
        """Begin with the target's final norm, which its LM head expects."""
        assert isinstance(self.output, NormedSplitOutput)
        self.output.final.weight.copy_(norm_weight(target.model))


class AnyHead(HeadDrafter):
    """A head of whatever architecture it was trained as; it has to be named with `head`."""
