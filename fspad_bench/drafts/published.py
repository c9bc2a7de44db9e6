"""The layout in which EAGLE and FSPAD publish their heads for Vicuna and LLaMA: config.json and
pytorch_model.bin.

- A config of a one-layer Llama (`published_config`), weights under that library's names.
- Copies of the target's own weights among them (its embedding, sometimes its LM head) are not read,
  but they tell whose head it is: a head of another model is refused.
- Every other weight is read, or refused by name.
- There is no draft vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fspad_bench.drafts.network import DraftNetwork, Shape, architectures
from fspad_bench.drafts.published_config import read_config, shape_of
from fspad_bench.errors import BenchError
from fspad_bench.util.paths import disk_errors, replacing, write_atomically

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
ATTENTION = "layers.0.self_attn"
LAYER = {
    **{f"attention.{name}.weight": f"{ATTENTION}.{name}_proj.weight" for name in "qkvo"},
    **{f"attention.{name}.bias": f"{ATTENTION}.{name}_proj.bias" for name in "qkv"},
    **{
        f"output.{name}.weight": f"layers.0.mlp.{name}_proj.weight"
        for name in ("gate", "up", "down")
    },
    "output.norm.weight": "layers.0.post_attention_layernorm.weight",
}
FUSION = "fuse.fc.weight"
BIAS = "fuse.fc.bias"
DOWN = "output.down.weight"
EMBEDDING = "embed_tokens.weight"
LM_HEAD = "lm_head.weight"
FREQUENCIES = f"{ATTENTION}.rotary_emb.inv_freq"
EAGLE_3 = ("midlayer.", "d2t", "t2d")  # how its weights' names begin
COPY_GAP = 0.2  # rounding to four bits is below 0.1, another model above 1
COMPARED = 4096  # rows of a copy, evenly spaced
ROPE_GAP = 1e-2  # relative; some files hold frequencies in bfloat16


def is_published(folder: Path) -> bool:
    """Whether a folder looks like a published head."""
    return (folder / CONFIG).is_file()


def weights_file(folder: Path) -> Path:
    """Return the file of the weights. Raises BenchError where there is none."""
    for name in (SAFETENSORS, PICKLE):
        if (folder / name).is_file():
            return folder / name
    parts = sorted(path.name for path in folder.glob("*.index.json"))
    what = f"weights in parts ({parts[0]})" if parts else "no weights"
    raise BenchError(
        f"{folder} holds {CONFIG} and {what}", f"a head's weights are one file: {PICKLE}"
    )


def read_published(folder: Path, embedding: Tensor, lm_head: Tensor) -> DraftNetwork:
    """Read the draft network of such a folder, for the target with these weights `[V, d]`.

    Raises BenchError naming a weight that is missing, misshapen or not read, or that shows the head
    to be another model's.
    """
    config = read_config(folder / CONFIG)
    weights = _weights(weights_file(folder))
    _check_values(folder, weights)
    biased = any(LAYER[f"attention.{name}.bias"] in weights for name in "qkv")
    shape = shape_of(folder / CONFIG, config, qkv_bias=biased)
    kind = _kind(weights, shape.d)
    names = LAYER | kind.published
    with torch.device("meta"):
        network = kind(shape)
    if names[BIAS] not in weights and config.get("bias") is False:  # heads for LLaMA-3
        weights[names[BIAS]] = torch.zeros(shape.d, dtype=next(iter(weights.values())).dtype)
    expected = {names[ours]: parameter.shape for ours, parameter in network.state_dict().items()}
    _check_names(folder, weights, expected)
    _check_copies(folder, weights, embedding, lm_head, config.get("vocab_size"))
    _check_frequencies(folder, weights, shape)
    state = {ours: weights[names[ours]] for ours in network.state_dict()}
    network.load_state_dict(state, assign=True)
    return network


def _check_values(folder: Path, weights: dict[str, Tensor]) -> None:
    """Raise BenchError for a weight that is not a plain tensor of floating-point numbers."""
    if any(name.startswith(EAGLE_3) for name in weights):
        raise BenchError(
            f"{folder} is a head of EAGLE-3", "heads of EAGLE, EAGLE-2 and FSPAD can be read"
        )
    for name, weight in weights.items():
        plain = weight.layout == torch.strided and not weight.is_meta
        if not plain or not weight.is_floating_point():
            raise BenchError(
                f"{folder}: {name} holds {weight.dtype}, {weight.layout} on {weight.device}",
                "weights are floating-point numbers: convert the head first",
            )


def _check_names(folder: Path, weights: dict[str, Tensor], expected: dict[str, torch.Size]) -> None:
    """Raise BenchError for a weight that is missing, misshapen, or read by no part of a head."""
    for name, shape in expected.items():
        if name not in weights:
            raise BenchError(
                f"{folder} is no EAGLE or FSPAD head: it lacks {name}",
                "is it another architecture's?",
            )
        if weights[name].shape != shape:
            sizes = f"{tuple(weights[name].shape)}, not {tuple(shape)}"
            raise BenchError(
                f"{folder}: {name} is of shape {sizes}", f"does {CONFIG} belong to these weights?"
            )
    unread = sorted(weights.keys() - expected.keys() - {EMBEDDING, LM_HEAD, FREQUENCIES})
    if unread:
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        raise BenchError(
            f"{folder} holds a weight that no EAGLE or FSPAD head reads: {unread[0]}{more}",
            "is it another architecture's?",
        )


def _check_copies(
    folder: Path, weights: dict[str, Tensor], embedding: Tensor, lm_head: Tensor, size: object
) -> None:
    """Raise BenchError unless copies of the target's weights are the target's.

    A vocabulary that the target has extended is still its own. Without a copy the vocabulary's size
    must do.
    """
    for name, own in ((EMBEDDING, embedding), (LM_HEAD, lm_head)):
        if name in weights:
            _check_copy(folder, name, weights[name], own)
    if EMBEDDING in weights:
        own_size = len(weights[EMBEDDING])
        if size not in (None, own_size):
            raise BenchError(
                f"{folder}: {CONFIG} states {size!r} tokens, {EMBEDDING} has {own_size}",
                f"does {CONFIG} belong to these weights?",
            )
    elif LM_HEAD not in weights and size not in (None, len(embedding)):
        raise BenchError(
            f"{folder} is a head for a vocabulary of {size!r} tokens; the target has "
            f"{len(embedding)}",
            "a head only helps the target it was trained for",
        )


def _check_copy(folder: Path, name: str, copy: Tensor, own: Tensor) -> None:
    if copy.dim() != 2 or copy.shape[1] != own.shape[1]:
        raise BenchError(
            f"{folder}: {name} is of shape {tuple(copy.shape)}, the target's {tuple(own.shape)}",
            "a head only helps the target it was trained for",
        )
    rows = min(len(copy), len(own))
    kept = torch.arange(0, rows, max(1, rows // COMPARED))
    theirs = copy[kept].double()
    ours = own.detach()[kept.to(own.device)].double().cpu()
    gap = float((theirs - ours).norm() / ours.norm())
    if not gap <= COPY_GAP:
        raise BenchError(
            f"{folder} is the head of another model: its {name} differs from the target's "
            f"by {gap:.0%}",
            "a head only helps the target it was trained for",
        )


def _check_frequencies(folder: Path, weights: dict[str, Tensor], shape: Shape) -> None:
    """Raise BenchError for rotary frequencies, a buffer of old files, other than the config's."""
    if FREQUENCIES not in weights:
        return
    half = shape.head_dim // 2
    expected = shape.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    given = weights[FREQUENCIES].double()
    if given.shape != expected.shape or not ((given / expected - 1).abs() <= ROPE_GAP).all():
        raise BenchError(
            f"{folder}: {FREQUENCIES} is not what rope_theta={shape.rope_theta:g} gives",
            f"does {CONFIG} belong to these weights?",
        )


def _kind(weights: dict[str, Tensor], d: int) -> type[DraftNetwork]:
    """Return the architecture with these names in its fusion and this many output parts."""
    down = weights.get(LAYER[DOWN])
    parts = 1 if down is None or down.dim() != 2 else down.shape[0] // d
    candidates = [kind for kind in architectures().values() if kind.published]
    named = [kind for kind in candidates if kind.published[FUSION] in weights]
    for kind in named or candidates:
        with torch.device("meta"):
            output = kind.build_output(Shape(d, 4, 1, 1, d, 1.0, 1e-6))
        if output.parts == parts and output.gate.out_features == 4:
            return kind
    return candidates[0]


def write_published(network: DraftNetwork, embedding: Tensor, folder: Path) -> str:
    """Write a head with the target's embedding `[V, d]`. Return the architecture it is read as.

    Every number is written as it is, in the narrowest precision that holds its tensor. Raises
    BenchError for an architecture that has no names in this layout.
    """
    shape = network.shape
    names = LAYER | network.published
    state = network.state_dict()
    nameless = sorted(state.keys() - names.keys())
    if nameless:
        raise BenchError(
            f"that layout has no name for {nameless[0]} of a head of '{network.architecture}'",
            "it holds heads of EAGLE and FSPAD",
        )
    weights = {names[ours]: _narrowest(weight) for ours, weight in state.items()}
    weights[EMBEDDING] = _narrowest(embedding)
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
        "qkv_bias": shape.qkv_bias,
    }
    with disk_errors(folder, RuntimeError):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / PICKLE) as part:
            torch.save(weights, part)
        write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    return _kind(weights, shape.d).architecture


def _narrowest(weight: Tensor) -> Tensor:
    """Return a tensor on the CPU in the narrowest precision that holds all its numbers."""
    weight = weight.detach().cpu().contiguous()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        narrow = weight.to(dtype)
        if torch.equal(narrow.to(weight.dtype), weight):
            return narrow
    return weight


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BenchError(
            f"cannot read {path}: {reason}", "the file may be damaged, or hold more than weights"
        ) from error
    items = weights.items() if isinstance(weights, dict) else ()
    if not items or not all(isinstance(k, str) and isinstance(w, Tensor) for k, w in items):
        raise BenchError(
            f"{path} holds no weights by name",
            "a state dict, as torch.save(model.state_dict()) writes it",
        )
    return {name: weight.detach() for name, weight in items}
