"""Networks between EAGLE and FSPAD, for ablations: each half of FSPAD alone, and EAGLE with FSPAD's
parameter count.

fspad-bench train --decoder wide --data my-data --output my-head
fspad-bench run --decoder wide=fspad_bench.decoders.variants:AnyHead -D wide.head=my-head --task all
"""

from __future__ import annotations

from fspad_bench.decoders.eagle import EagleNetwork
from fspad_bench.decoders.fspad import FeatureSampling, FspadNetwork, SplitOutput
from fspad_bench.drafts.drafter import HeadDrafter
from fspad_bench.drafts.network import DraftNetwork, Output, Shape


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


class AnyHead(HeadDrafter):
    """A head of whatever architecture it was trained as; it has to be named with `head`."""
