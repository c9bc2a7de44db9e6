"""The layout in which EAGLE and FSPAD publish their heads for Vicuna and LLaMA: config.json and pytorch_model.bin.

A config of a one-layer Llama, weights under that library's names, the frozen embedding among them (left aside: it is
the target's). There is no draft vocabulary, and no word of which weights the head was trained for: only its sizes can
be checked against the target's.
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

from fspad_bench.drafts.network import DraftNetwork, Shape
from fspad_bench.errors import BenchError

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
PLAIN = {"fuse.fc.weight": "fc.weight", "fuse.fc.bias": "fc.bias"}
SAMPLING = {
    "fuse.fc.weight": "fc.fc.weight",
    "fuse.fc.bias": "fc.fc.bias",
    "fuse.norm.weight": "fc.post_attention_layernorm.weight",
    **{f"fuse.{name}.weight": f"fc.mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
}


def is_published(folder: Path) -> bool:
    """Whether a folder looks like a head of theirs."""
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in WEIGHTS)


def weights_file(folder: Path) -> Path:
    return next(folder / name for name in WEIGHTS if (folder / name).is_file())


def read_published(folder: Path) -> DraftNetwork:
    """The draft network of such a folder. Raises BenchError saying which weight is missing or of another shape."""
    config = _config(folder / CONFIG)
    found = _weights(weights_file(folder))
    sampling = SAMPLING["fuse.fc.weight"] in found
    names = LAYER | (SAMPLING if sampling else PLAIN)
    down = found.get(LAYER["output.down.weight"])
    split = down is not None and down.shape[0] == 2 * config["hidden_size"]
    shape = _shape(folder, config, feature_sampling=sampling, split_output=split)
    with torch.device("meta"):
        network = DraftNetwork(shape)
    if names["fuse.fc.bias"] not in found:  # the heads for LLaMA-3 have none
        found[names["fuse.fc.bias"]] = torch.zeros(shape.d, dtype=next(iter(found.values())).dtype)
    for ours, parameter in network.state_dict().items():
        theirs = names[ours]
        if theirs not in found:
            raise BenchError(
                f"{folder} is no EAGLE or FSPAD head: it lacks {theirs}",
                "is it another architecture's?",
            )
        if found[theirs].shape != parameter.shape:
            sizes = f"{tuple(found[theirs].shape)}, not {tuple(parameter.shape)}"
            raise BenchError(
                f"{folder}: {theirs} is of shape {sizes}", f"does {CONFIG} belong to these weights?"
            )
    network.load_state_dict(
        {ours: found[names[ours]] for ours in network.state_dict()}, assign=True
    )
    return network


def write_published(network: DraftNetwork, embedding: Tensor, folder: Path) -> None:
    """Write a head over the full vocabulary in their layout, with the target's embedding `[V, d]` as they have it."""
    shape = network.shape
    names = LAYER | (SAMPLING if shape.feature_sampling else PLAIN)
    weights = {
        names[ours]: weight.detach().cpu().contiguous()
        for ours, weight in network.state_dict().items()
    }
    weights["embed_tokens.weight"] = embedding.detach().cpu().to(next(iter(weights.values())).dtype)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.d,
        "intermediate_size": shape.output_width,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "num_hidden_layers": 1,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.rope_theta,
        "vocab_size": embedding.shape[0],
        "bias": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / WEIGHTS[1])
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: config[name]
            for name in ("hidden_size", "intermediate_size", "num_attention_heads")
        } | config
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"{path} is no config of a draft head: {error}", "it needs the sizes of a Llama layer"
        ) from error


def _shape(folder: Path, config: dict[str, Any], **switches: bool) -> Shape:
    heads = config["num_attention_heads"]
    d = config["hidden_size"]
    rope = config.get("rope_parameters") or {}
    if config.get("hidden_act", "silu") != "silu" or config.get("num_hidden_layers", 1) != 1:
        raise BenchError(f"{folder} is no EAGLE or FSPAD head", "those are one layer with SiLU")
    if config.get("rope_scaling"):
        raise BenchError(
            f"{folder} scales its rotary embedding", "published heads for Vicuna and LLaMA-3 do not"
        )
    return Shape(
        d=d,
        m=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or d // heads,
        rope_theta=float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        eps=config.get("rms_norm_eps", 1e-6),
        **switches,
    )


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BenchError(
            f"cannot read {path}: {reason}", "the file may be damaged, or hold more than weights"
        ) from error
    if not (
        isinstance(found, dict) and all(isinstance(weight, Tensor) for weight in found.values())
    ):
        raise BenchError(
            f"{path} holds no weights by name",
            "a state dict, as torch.save(model.state_dict()) writes it",
        )
    return found
