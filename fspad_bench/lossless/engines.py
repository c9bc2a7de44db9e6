"""The engines that a certification looks at: the target's own, and small ones that are cheap.

- `small_engines`: `tiny` in float64; a model of widths that the compiled step serves, in float32
  and bfloat16; on a CPU also `tiny` on the reference kernels, for the loop that runs on devices.
- `shallow`: the first layers of a large target, with its widths, precision, device and kernels, at
  a fraction of its cost.
"""

from __future__ import annotations

import copy
import os
from unittest.mock import patch

import torch
from transformers import LlamaConfig

from fspad_bench.engine import gpu
from fspad_bench.engine.stock import take_buffers
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.tiny import CONFIG, tiny_model

LAYERS = 2
WIDE = LlamaConfig(
    **{
        **CONFIG.to_dict(),
        "hidden_size": 128,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
    }
)


def wide_target(dtype: torch.dtype, device: torch.device | str = "cpu") -> TransformersTarget:
    """Return a small target whose widths the compiled step serves."""
    model = tiny_model(WIDE).to(device, dtype)
    return TransformersTarget(model, None, "wide", "wide")


def tiny_on_kernels() -> TransformersTarget:
    """Return `tiny` on the CPU with the reference kernels, as a device would run it."""
    with patch.dict(os.environ, {gpu.VARIABLE: "reference"}):
        return TransformersTarget(tiny_model(), None, "tiny", "tiny")


def small_engines(tiny: TransformersTarget) -> dict[str, TransformersTarget]:
    """Return small targets on the device of `tiny`, by what a report calls them."""
    device = tiny.device
    targets = [tiny, wide_target(torch.float32, device), wide_target(torch.bfloat16, device)]
    if not tiny.kernels:
        targets.append(tiny_on_kernels())
    return {described(target): target for target in targets}


def described(target: TransformersTarget) -> str:
    """Return a target's name, precision and engine, and its devices where there are several."""
    parts = [target.name, str(target.dtype).removeprefix("torch."), target.attention.name]
    if not target.placement.is_single:
        parts.append(str(target.placement))
    return ", ".join(parts)


def shallow(target: TransformersTarget, layers: int = LAYERS) -> TransformersTarget:
    """Return the target's first layers as a target of its own; itself where it has no more, or runs
    by its stock forward.
    """
    if target.fused is None or target.config.num_hidden_layers <= layers:
        return target
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    with torch.device("meta"):
        model = type(target.model)(config)
    wanted = model.state_dict().keys()
    weights = {name: w for name, w in target.model.state_dict().items() if name in wanted}
    model.load_state_dict(weights, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(target.device)
    take_buffers(model, target.model)
    model.tie_weights()
    return TransformersTarget(model, None, f"{layers} layers of {target.name}", target.identity)
