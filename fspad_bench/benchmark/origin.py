"""Where the figures of a run come from: what all its rows share."""

from __future__ import annotations

from typing import Any

import torch

from fspad_bench import __version__
from fspad_bench.benchmark.prompts import Prompts
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.models.chat import tokenizer_hash
from fspad_bench.util import machine
from fspad_bench.util.provenance import source_hash


def origin_of(target: TransformersTarget, prompts: Prompts) -> dict[str, Any]:
    """Return the fields that all keys of a run share: the target, the machine, the software."""
    return {
        "target": target.name,
        "target_identity": target.identity,
        "target_sha256": target.files_sha256,
        "dtype": str(target.dtype).removeprefix("torch."),
        "forward": target.forward_name,
        "device": _device(target),
        "threads": torch.get_num_threads(),
        "machine": machine.describe(target.gpu),
        "version": __version__,
        "torch": torch.__version__,
        "source_sha256": source_hash(),
        "template_sha256": prompts.template_sha256,
        "tokenizer_sha256": tokenizer_hash(prompts.tokenizer),
    }


def _device(target: TransformersTarget) -> str:
    """Return the type of a single device, and of several their names.

    Equal GPUs give equal figures, so that shards on one each share their rows; `machine` names what
    GPU it is, and the plan of a shard which one.
    """
    placement = target.placement
    return placement.first.type if placement.is_single else str(placement)
