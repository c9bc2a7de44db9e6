"""The precision of a training's matrix products, on the device at hand.

bfloat16, as drafts are trained on GPUs; float32 on a processor that has no products in bfloat16,
where torch's take several times as long.
"""

from __future__ import annotations

import torch

from fspad_bench.engine.cpu.torch_ops import multiplies_bfloat16


def product_type(device: torch.device) -> torch.dtype:
    """Return the type of the numbers that are multiplied."""
    is_fast = device.type != "cpu" or multiplies_bfloat16()
    return torch.bfloat16 if is_fast else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """Return a context in which products round their inputs to bfloat16, if it is to be that."""
    is_rounded = product_type(device) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=is_rounded)
