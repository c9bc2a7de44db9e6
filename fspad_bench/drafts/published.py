"""The layout in which EAGLE, EAGLE-3 and FSPAD publish their heads for Vicuna and LLaMA:
config.json and pytorch_model.bin.

- A config of a one-layer Llama (`published_config`), weights under that library's names.
- Names may have a common prefix, as a wrapped module's have: `model.`, `module.`.
- Copies of the target's own weights among them (its embedding, sometimes its LM head) are not read,
  but they tell whose head it is: a head of another model is refused.
- Every other weight is read, or refused by name.
- EAGLE-3 alone has a draft vocabulary, an LM head for it, and a choice of hidden states
  (`published_eagle3`). All others draft every token by the target's LM head.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor

from fspad_bench.drafts import published_eagle3
from fspad_bench.drafts.network import DraftNetwork, HeadNetwork, architectures
from fspad_bench.drafts.published_config import read_config, shape_of
from fspad_bench.drafts.shape import Shape
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.util.errors import BenchError
from fspad_bench.util.paths import disk_errors, replacing, write_atomically
from fspad_bench.util.strangers import contained, first_line_of

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
LAYER = {
    **{f"attention.{name}.weight": f"self_attn.{name}_proj.weight" for name in "qkvo"},
    **{f"attention.{name}.bias": f"self_attn.{name}_proj.bias" for name in "qkv"},
    **{f"output.{name}.weight": f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
    "output.norm.weight": "post_attention_layernorm.weight",
}
FUSION = "fuse.fc.weight"
BIAS = "fuse.fc.bias"
DOWN = "output.down.weight"
EMBEDDING = "embed_tokens.weight"
LM_HEAD = "lm_head.weight"
FREQUENCIES = "self_attn.rotary_emb.inv_freq"
LFS_POINTER = b"version https://git-lfs"
COPY_GAP = 0.2  # rounding to four bits is below 0.1, another model above 1
COMPARED = 4096  # rows of a copy, evenly spaced
PUBLISHED_BY = "it holds heads of EAGLE, EAGLE-3 and FSPAD"
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


def read_published(folder: Path, target: TransformersTarget) -> tuple[DraftNetwork, Tensor]:
    """Read the draft network of such a folder, and the ids of its draft vocabulary `[S]`.

    Raises BenchError naming a weight that is missing, misshapen or not read, or that shows the head
    to be another model's.
    """
    path = folder / CONFIG
    config = read_config(path)
    weights = _unwrapped(_weights(weights_file(folder)))
    _check_stored(folder, weights)
    biased = any(f".self_attn.{part}_proj.bias" in name for name in weights for part in "qkv")
    shape = shape_of(path, config, qkv_bias=biased)
    kind = _kind(weights, shape.d)
    vocabulary = torch.arange(target.config.vocab_size)
    if has_vocabulary(kind):
        states = published_eagle3.read_states(path, config, target.config.num_hidden_layers)
        published_eagle3.check_settings(path, config, states)
        vocabulary = published_eagle3.take_vocabulary(folder, config, weights, len(vocabulary))
        shape = replace(shape, capture=states, vocabulary=len(vocabulary))
    _check_values(folder, weights)
    names = _names(kind)
    with torch.device("meta"):
        network = kind(shape)
    if BIAS in names and names[BIAS] not in weights and config.get("bias") is False:
        # heads for LLaMA-3
        weights[names[BIAS]] = torch.zeros(shape.d, dtype=next(iter(weights.values())).dtype)
    expected = {names[ours]: parameter.shape for ours, parameter in network.state_dict().items()}
    _check_names(folder, weights, expected, kind)
    _check_copies(folder, weights, expected, target, config.get("vocab_size"))
    _check_frequencies(folder, weights, shape, kind)
    state = {ours: weights[names[ours]] for ours in network.state_dict()}
    network.load_state_dict(state, assign=True)
    return network, vocabulary


def _published() -> list[type[DraftNetwork]]:
    """Return the architectures that have names in this layout."""
    layered = [kind for kind in architectures().values() if issubclass(kind, DraftNetwork)]
    return [kind for kind in layered if kind.published]


def _names(kind: type[DraftNetwork]) -> dict[str, str]:
    """Return the published name of every weight of an architecture: ours -> theirs."""
    layer = {ours: f"{kind.published_layer}.{theirs}" for ours, theirs in LAYER.items()}
    return layer | kind.published


def has_vocabulary(kind: type[HeadNetwork]) -> bool:
    """Whether an architecture is published with a vocabulary and an LM head of its own."""
    return kind.published.get(LM_HEAD) == LM_HEAD


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights without the prefix that all names share but that of the LM head's copy.

    A wrapper puts it there, such as `model.` or `module.`.
    """
    queries = {_names(kind)["attention.q.weight"] for kind in _published()}
    prefixes = [
        name.removesuffix(query)
        for name in weights
        for query in queries
        if name.endswith(f".{query}")
    ]
    shared = {name for name in weights if prefixes and name.startswith(prefixes[0])}
    if not weights.keys() - shared <= {LM_HEAD}:
        return weights
    own = {name.removeprefix(prefixes[0]): weights[name] for name in shared}
    return own | {name: weights[name] for name in weights.keys() - shared}


def _check_stored(folder: Path, weights: dict[str, Tensor]) -> None:
    """Raise BenchError for a tensor that is not plain, or has more elements than its file holds: a
    few bytes can describe one that no memory holds.
    """
    for name, weight in weights.items():
        is_dense = weight.layout == torch.strided and not weight.is_nested
        if not is_dense or weight.is_meta or weight.is_quantized:
            raise BenchError(
                f"{folder}: {name} holds {weight.dtype}, {weight.layout} on {weight.device}",
                "weights are plain tensors: convert the head first",
            )
        if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
            raise BenchError(
                f"{folder}: {name} has {weight.numel()} elements, more than the file holds of it",
                "the file may be damaged; fetch the head again",
            )


def _check_values(folder: Path, weights: dict[str, Tensor]) -> None:
    """Raise BenchError for a weight of other than floating-point numbers."""
    for name, weight in weights.items():
        if not weight.is_floating_point():
            raise BenchError(
                f"{folder}: {name} holds {weight.dtype}",
                "weights are floating-point numbers: convert the head first",
            )


def _check_names(
    folder: Path,
    weights: dict[str, Tensor],
    expected: dict[str, torch.Size],
    kind: type[DraftNetwork],
) -> None:
    """Raise BenchError for a weight that is missing, misshapen, or read by no part of a head."""
    for name, shape in expected.items():
        if name not in weights:
            raise BenchError(
                f"{folder} is no published head of '{kind.architecture}': it lacks {name}",
                "is it another architecture's?",
            )
        if weights[name].shape != shape:
            sizes = f"{tuple(weights[name].shape)}, not {tuple(shape)}"
            raise BenchError(
                f"{folder}: {name} is of shape {sizes}", f"does {CONFIG} belong to these weights?"
            )
    copies = {EMBEDDING, LM_HEAD, f"{kind.published_layer}.{FREQUENCIES}"}
    unread = sorted(weights.keys() - expected.keys() - copies)
    if unread:
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        raise BenchError(
            f"{folder} holds a weight that no head of '{kind.architecture}' reads: "
            f"{unread[0]}{more}",
            "is it another architecture's?",
        )


def _check_copies(
    folder: Path,
    weights: dict[str, Tensor],
    expected: dict[str, torch.Size],
    target: TransformersTarget,
    size: object,
) -> None:
    """Raise BenchError unless copies of the target's weights, which no part of a head reads, are
    the target's.

    A vocabulary that the target has extended is still its own. Without a copy the vocabulary's size
    must do.
    """
    embedding = target.embedding.weight
    copies = weights.keys() - expected.keys()
    for name, own in ((EMBEDDING, embedding), (LM_HEAD, target.lm_head.weight)):
        if name in copies:
            _check_copy(folder, name, weights[name], own)
    if EMBEDDING in weights:
        own_size = len(weights[EMBEDDING])
        if size not in (None, own_size):
            raise BenchError(
                f"{folder}: {CONFIG} states {size!r} tokens, {EMBEDDING} has {own_size}",
                f"does {CONFIG} belong to these weights?",
            )
    elif LM_HEAD not in copies and size not in (None, len(embedding)):
        raise BenchError(
            f"{folder} is a head for a vocabulary of {size!r} tokens; the target has "
            f"{len(embedding)}",
            "a head only helps the target it was trained for",
        )


def _check_copy(folder: Path, name: str, copy: Tensor, own: Tensor) -> None:
    if copy.dim() != 2 or copy.shape[1] != own.shape[1] or not len(copy):
        raise BenchError(
            f"{folder}: {name} is of shape {tuple(copy.shape)}, the target's {tuple(own.shape)}",
            "a head only helps the target it was trained for",
        )
    rows = min(len(copy), len(own))
    kept = torch.arange(0, rows, max(1, rows // COMPARED))
    theirs = copy[kept].double()
    ours = own.detach()[kept.to(own.device)].double().cpu()
    gap = float((theirs - ours).norm() / ours.norm())
    if not math.isfinite(gap):
        raise BenchError(
            f"{folder}: {name} holds numbers that are not finite", "fetch or train the head again"
        )
    if gap > COPY_GAP:
        raise BenchError(
            f"{folder} is the head of another model: its {name} differs from the target's "
            f"by {gap:.0%}",
            "a head only helps the target it was trained for",
        )


def _check_frequencies(
    folder: Path, weights: dict[str, Tensor], shape: Shape, kind: type[DraftNetwork]
) -> None:
    """Raise BenchError for rotary frequencies, a buffer of old files, other than the config's."""
    name = f"{kind.published_layer}.{FREQUENCIES}"
    if name not in weights:
        return
    half = shape.head_dim // 2
    expected = shape.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    given = weights[name].double()
    if given.shape != expected.shape or not ((given / expected - 1).abs() <= ROPE_GAP).all():
        raise BenchError(
            f"{folder}: {name} is not what rope_theta={shape.rope_theta:g} gives",
            f"does {CONFIG} belong to these weights?",
        )


def _kind(weights: dict[str, Tensor], d: int) -> type[DraftNetwork]:
    """Return the architecture with this name of its layer, these names in its fusion and this many
    output parts.
    """
    published = _published()
    candidates = [
        kind
        for kind in published
        if any(name.startswith(f"{kind.published_layer}.") for name in weights)
    ] or published
    down = weights.get(_names(candidates[0])[DOWN])
    parts = 1 if down is None or down.dim() != 2 else down.shape[0] // d
    named = [kind for kind in candidates if kind.published.get(FUSION) in weights]
    for kind in named or candidates:
        with torch.device("meta"):
            output = kind.build_output(Shape(d, 4, 1, 1, d, 1.0, 1e-6))
        if output.parts == parts and output.gate.out_features == 4:
            return kind
    return candidates[0]


def write_published(
    network: HeadNetwork, vocabulary: Tensor, target: TransformersTarget, folder: Path
) -> str:
    """Write a head with the target's embedding. Return the architecture it is read as.

    `vocabulary [S]` is kept where the layout has one, with the target's LM head if the network has
    none. Every number is written as it is, in the narrowest precision that holds its tensor. Raises
    BenchError for an architecture that has no names in this layout.
    """
    if not isinstance(network, DraftNetwork):
        raise BenchError(
            f"that layout has no place for a head of '{network.architecture}'", PUBLISHED_BY
        )
    shape = network.shape
    embedding = target.embedding.weight
    names = _names(type(network))
    state = network.state_dict()
    own = {}
    if has_vocabulary(type(network)):
        own = published_eagle3.settings(shape.capture, len(vocabulary))
        state[LM_HEAD] = network.head_rows(target.lm_head.weight, vocabulary)
    nameless = sorted(state.keys() - names.keys())
    if nameless:
        raise BenchError(
            f"that layout has no name for {nameless[0]} of a head of '{network.architecture}'",
            PUBLISHED_BY,
        )
    weights = {names[ours]: _narrowest(weight) for ours, weight in state.items()}
    weights[EMBEDDING] = _narrowest(embedding)
    if own:
        weights |= published_eagle3.vocabulary_weights(vocabulary, len(embedding))
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
        **own,
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


def _unreadable(path: Path, error: Exception) -> tuple[str, str]:
    """Return message and hint for a file of weights that cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            return f"{path} is a Git LFS pointer, not the file", "fetch the file: `git lfs pull`"
    reason = first_line_of(error) or type(error).__name__
    if isinstance(error, UnpicklingError):  # torch advises to execute what the file holds
        reason = "it is no file of weights alone"
    return f"cannot read {path}: {reason}", "the file may be damaged, or hold more than weights"


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        with contained():
            if path.suffix == ".safetensors":
                return load_file(path)
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise BenchError(*_unreadable(path, error)) from error
    items = weights.items() if isinstance(weights, dict) else ()
    if not items or not all(isinstance(k, str) and isinstance(w, Tensor) for k, w in items):
        raise BenchError(
            f"{path} holds no weights by name",
            "a state dict, as torch.save(model.state_dict()) writes it",
        )
    return {name: weight.detach() for name, weight in items}
