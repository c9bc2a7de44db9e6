"""Load a target: a preset, a folder or a hub id, on a device, in a precision.

- A repository's own code never runs: `trust_remote_code` is off, and weights are safetensors,
  GGUF, or `.bin` read with `weights_only`.
- A target lives on one device. `auto` is a GPU if there is one, else the CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fspad_bench.engine.target import TransformersTarget
from fspad_bench.errors import BenchError
from fspad_bench.models.presets import Checkpoint, resolve

DEVICES = "cpu, cuda, cuda:1 or auto"
DEVICE_MAPS = ("balanced", "balanced_low_0", "sequential")  # accelerate's ways to share a model


def load_target(name: str, *, device: str = "cpu", dtype: str | None = None) -> TransformersTarget:
    """Load a preset, folder or hub id.

    `dtype` defaults to float32 on the CPU, bfloat16 elsewhere, and float64 for the preset `tiny`.
    Raises BenchError if the name, the device or the files are not usable.
    """
    checkpoint = resolve(name)
    device = device_named(device)
    if checkpoint.path is None:
        return _tiny(checkpoint, device, dtype)
    return _from_files(
        checkpoint, checkpoint.path, device, getattr(torch, dtype or default_dtype(device))
    )


def default_dtype(device: str) -> str:
    """Return the precision that targets run in on this device unless another is given."""
    return "float32" if torch.device(device).type == "cpu" else "bfloat16"


def training_dtype(name: str) -> str | None:
    """Return the precision in which a target answers and gives features for training.

    bfloat16, in which features are stored in any case; None leaves the preset `tiny` in its own.
    """
    return None if name == "tiny" else "bfloat16"


def device_named(name: str) -> str:
    """Resolve `auto`, and check that torch can use the device. Raises BenchError."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if "," in name or name in DEVICE_MAPS:
        raise BenchError(
            f"--device {name} names several devices, and a target runs on one",
            f"give one of {DEVICES}",
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BenchError(f"unknown device '{name}'", f"give one of {DEVICES}") from error
    if device.type == "cuda":
        _check_cuda(name, device)
    return name


def _check_cuda(name: str, device: torch.device) -> None:
    if not torch.cuda.is_available():
        raise BenchError(
            f"no CUDA device for --device {name}", "use --device cpu, or a torch built for CUDA"
        )
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise BenchError(
            f"no CUDA device {device.index}: there are {count}", "count CUDA devices from 0"
        )


def _tiny(checkpoint: Checkpoint, device: str, dtype: str | None) -> TransformersTarget:
    from fspad_bench.models.tiny import tiny_model, tiny_tokenizer

    model = tiny_model().to(device, getattr(torch, dtype or "float64"))
    return TransformersTarget(model, tiny_tokenizer(), checkpoint.name, checkpoint.identity)


def _repair(path: str) -> str:
    """Return what to do about a target that cannot be loaded: a folder has no network to blame."""
    if Path(path).is_dir():
        return f"a file of {path} may be damaged or missing: download or copy the target again"
    return "check the name, your access to it, and the network (HF_HUB_OFFLINE=1 works without)"


def _from_files(
    checkpoint: Checkpoint, path: str, device: str, dtype: torch.dtype
) -> TransformersTarget:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            device_map=device,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # whatever a damaged file makes its reader raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BenchError(
            f"cannot load target '{checkpoint.name}': {reason}", _repair(path)
        ) from error
    model, report = loaded
    if report["missing_keys"]:  # transformers would fill them with random numbers
        missing = sorted(report["missing_keys"])
        raise BenchError(
            f"'{checkpoint.name}' lacks {len(missing)} weights, {missing[0]} first",
            "download or copy the target again",
        )
    if checkpoint.template and not tokenizer.chat_template:
        tokenizer.chat_template = checkpoint.template
    identity = getattr(model.config, "_commit_hash", None) or checkpoint.identity
    return TransformersTarget(model, tokenizer, checkpoint.name, identity)
