"""Matrix products of a few rows on the CPU, over weights packed once.

At the 1 to 32 rows of a draft tree a product should cost what reading its weights costs. Over plain weights it costs
two to three times that in float32 and half as much again in bfloat16. Ours (`native`) come near it, and give a row the
same bits whatever other rows are asked about with it; where they cannot be had, oneDNN comes half as near over weights
reordered for its kernels, by the operation that torch's own compiler uses for frozen models. Used by every arm alike,
vanilla first of all, and named in the record. The plain weights stay for the many rows of a prompt, and for whoever
runs the stock model.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fspad_bench.engine.cpu import native

ROWS = 8  # what the packing is laid out for; it serves any number
DTYPES = (torch.float32, torch.bfloat16)
NAME = "packed"
STOCK = "stock"


class Matrix:
    """x `[..., in]` -> x W^T + b `[..., out]` for a weight `[out, in]`, in inference."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self.packed = None
        self.native = native.fitting(weight, self.width)
        if self.native:
            self.packed = self.native.pack(weight.detach())
        elif suits(weight):
            self.packed = _pack(weight.detach())

    @property
    def width(self) -> int:
        """Of what it reads."""
        return self.weight.shape[1]

    @property
    def outs(self) -> int:
        """The width of what it makes."""
        return self.weight.shape[0]

    def __call__(self, x: Tensor) -> Tensor:
        few = x.numel() <= native.ROWS * x.shape[-1]
        if self.native and few:
            return self.native.product(x.contiguous(), self.packed, self.outs, self.bias)
        if self.native or self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


@torch.no_grad()
def stacked(*parts: nn.Linear) -> Matrix:
    """The product of one input with all parts, side by side; their weights become views of one tensor."""
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


def suits(weight: Tensor) -> bool:
    """Whether oneDNN can pack this weight here, and it pays."""
    return weight.device.type == "cpu" and weight.dtype in DTYPES and _available(weight.dtype)


@cache
def _available(dtype: torch.dtype) -> bool:
    """Whether this torch has the operation, and it computes what it should: it is one of torch's internals."""
    weight = torch.arange(12.0).reshape(3, 4).to(dtype)
    x = torch.ones(2, 4, dtype=dtype)
    try:
        with torch.inference_mode():
            found = torch.ops.mkldnn._linear_pointwise(x, _pack(weight), None, "none", [], "")
        return torch.equal(found, F.linear(x, weight))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


@torch.no_grad()
def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
