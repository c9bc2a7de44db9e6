"""What lies between two products, in torch: for whatever the compiled functions are not for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

SILU = "silu"
TANH_GELU = "gelu_pytorch_tanh"
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    SILU: F.silu,
    TANH_GELU: partial(F.gelu, approximate="tanh"),
}
"""A gate's activation by transformers' name; the compiled functions number them in this order."""


def multiplies_bfloat16() -> bool:
    """Whether torch has fast products in bfloat16 on this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class TorchOps:
    """The elementwise operations of a layer."""

    compiled = False
    signature = ""

    def __init__(
        self, norm: Callable[[Tensor, Tensor, float], Tensor], activation: str = SILU
    ) -> None:
        """`norm(x, weight, eps)` is an RMS norm of the last dimension."""
        self.norm = norm
        self.activation = activation

    def add_norm(
        self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return x + delta and its RMS norm, `[N, d]` each."""
        x = x if delta is None else x + delta
        return x, self.norm(x, weight, eps)

    def gated(self, both: Tensor) -> Tensor:
        """Return activation(gate) * up `[N, m]` of rows of gate and up, `[N, 2 m]`."""
        gate, up = both.chunk(2, dim=-1)
        return ACTIVATIONS[self.activation](gate) * up
