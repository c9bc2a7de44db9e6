"""Matrix products of a few rows on the CPU, over weights packed once.

- At the 1 to 32 rows of a draft tree a product should cost what reading its weights costs. Over
  plain weights it costs two to three times that in float32 and half as much again in bfloat16; the
  compiled product (`native`) comes near it.
- A row gets the same bits whatever other rows are multiplied with it.
- The plain weights stay in memory beside the packed ones: for the many rows of a prompt, and for
  the stock model. torch multiplies those rows, in float32 where its products in bfloat16 are slow.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fspad_bench.engine.cpu import native
from fspad_bench.engine.cpu.torch_ops import multiplies_bfloat16

STOCK = "stock"


class Matrix:
    """x `[..., in]` -> x W^T + b `[..., out]` for a weight `[out, in]`, in inference."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self.native = native.fitting(weight, weight.shape[1])
        self.packed = self.native.pack(weight.detach()) if self.native else None
        self.multiply: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None
        """What multiplies a few rows instead, where a device has its own."""

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        few = x.numel() <= native.ROWS * x.shape[-1]
        if self.multiply and few:
            return self.multiply(x, self.weight, self.bias)
        if self.native and self.packed is not None and few:
            return self.native.product(x.contiguous(), self.packed, self.out_features, self.bias)
        if not few and _is_slow(x):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(x.float(), self.weight.float(), bias).bfloat16()
        return F.linear(x, self.weight, self.bias)


def _is_slow(x: Tensor) -> bool:
    """Whether torch multiplies rows of this type slowly where they lie."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and not multiplies_bfloat16()


@torch.no_grad()
def stacked(*parts: nn.Linear) -> Matrix:
    """Return one product of one input with all parts, side by side.

    Their weights become views of one tensor.
    """
    if len(parts) == 1:
        return Matrix(parts[0].weight, parts[0].bias)
    weight = torch.cat([part.weight for part in parts])
    bias = torch.cat([part.bias for part in parts]) if parts[0].bias is not None else None
    start = 0
    for part in parts:
        end = start + part.out_features
        part.weight.data = weight[start:end]
        if bias is not None:
            part.bias.data = bias[start:end]
        start = end
    return Matrix(weight, bias)
