"""The layout in which EAGLE and FSPAD publish their heads for Vicuna and LLaMA: config.json and
pytorch_model.bin.

- A config of a one-layer Llama, weights under that library's names, the frozen embedding among them
  (left aside: it is the target's).
- There is no draft vocabulary, and nothing says which weights the head was trained for: only its
  sizes can be checked against the target's.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fspad_bench.drafts.network import DraftNetwork, Shape, architectures
from fspad_bench.errors import BenchError
from fspad_bench.util.paths import disk_errors, replacing, write_atomically

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LAYER = {
    **{f"attention.{name}.weight": f"layers.0.self_attn.{name}_proj.weight" for name in "qkvo"},
    **{
        f"output.{name}.weight": f"layers.0.mlp.{name}_proj.weight"
        for name in ("gate", "up", "down")
    },
    "output.norm.weight": "layers.0.post_attention_layernorm.weight",
}
FUSION = "fuse.fc.weight"
BIAS = "fuse.fc.bias"
DOWN = "output.down.weight"


def is_published(folder: Path) -> bool:
    """Whether a folder looks like a published head."""
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in WEIGHTS)


def weights_file(folder: Path) -> Path:
    return next(folder / name for name in WEIGHTS if (folder / name).is_file())


def read_published(folder: Path) -> DraftNetwork:
    """Read the draft network of such a folder.

    Raises BenchError naming a weight that is missing or misshapen.
    """
    config = _config(folder / CONFIG)
    weights = _weights(weights_file(folder))
    kind = _kind(weights, config["hidden_size"])
    names = LAYER | kind.published
    shape = _shape(folder, config)
    with torch.device("meta"):
        network = kind(shape)
    if names[BIAS] not in weights:  # the heads for LLaMA-3 have none
        weights[names[BIAS]] = torch.zeros(shape.d, dtype=next(iter(weights.values())).dtype)
    for ours, parameter in network.state_dict().items():
        name = names[ours]
        if name not in weights:
            raise BenchError(
                f"{folder} is no EAGLE or FSPAD head: it lacks {name}",
                "is it another architecture's?",
            )
        if weights[name].shape != parameter.shape:
            sizes = f"{tuple(weights[name].shape)}, not {tuple(parameter.shape)}"
            raise BenchError(
                f"{folder}: {name} is of shape {sizes}", f"does {CONFIG} belong to these weights?"
            )
    state = {ours: weights[names[ours]] for ours in network.state_dict()}
    network.load_state_dict(state, assign=True)
    return network


def _kind(weights: dict[str, Tensor], d: int) -> type[DraftNetwork]:
    """Return the architecture with these names in its fusion and this many output parts."""
    down = weights.get(LAYER[DOWN])
    parts = 1 if down is None else down.shape[0] // d
    candidates = [kind for kind in architectures().values() if kind.published]
    named = [kind for kind in candidates if kind.published[FUSION] in weights]
    for kind in named or candidates:
        with torch.device("meta"):
            output = kind.build_output(Shape(d, 4, 1, 1, d, 1.0, 1e-6))
        if output.parts == parts and output.gate.out_features == 4:
            return kind
    return candidates[0]


def write_published(network: DraftNetwork, embedding: Tensor, folder: Path) -> None:
    """Write a head over the full vocabulary, with the target's embedding `[V, d]`."""
    shape = network.shape
    names = LAYER | network.published
    state = network.state_dict()
    weights = {names[ours]: weight.detach().cpu().contiguous() for ours, weight in state.items()}
    dtype = next(iter(weights.values())).dtype
    weights["embed_tokens.weight"] = embedding.detach().cpu().to(dtype)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.d,
        "intermediate_size": network.output.gate.out_features,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "num_hidden_layers": 1,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.rope_theta,
        "vocab_size": embedding.shape[0],
        "bias": True,
    }
    with disk_errors(folder, RuntimeError):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS[1]) as part:
            torch.save(weights, part)
        write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        needed = ("hidden_size", "intermediate_size", "num_attention_heads")
        return {name: config[name] for name in needed} | config
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"{path} is no config of a draft head: {error}", "it needs the sizes of a Llama layer"
        ) from error


def _shape(folder: Path, config: dict[str, Any]) -> Shape:
    heads = config["num_attention_heads"]
    d = config["hidden_size"]
    rope = config.get("rope_parameters") or {}
    if config.get("hidden_act", "silu") != "silu" or config.get("num_hidden_layers", 1) != 1:
        raise BenchError(f"{folder} is no EAGLE or FSPAD head", "those are one layer with SiLU")
    if config.get("rope_scaling"):
        raise BenchError(
            f"{folder} scales its rotary embedding",
            "published heads for Vicuna and LLaMA-3 do not",
        )
    return Shape(
        d=d,
        m=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or d // heads,
        rope_theta=float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        eps=config.get("rms_norm_eps", 1e-6),
    )


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BenchError(
            f"cannot read {path}: {reason}", "the file may be damaged, or hold more than weights"
        ) from error
    named = isinstance(weights, dict)
    if not named or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise BenchError(
            f"{path} holds no weights by name",
            "a state dict, as torch.save(model.state_dict()) writes it",
        )
    return weights
