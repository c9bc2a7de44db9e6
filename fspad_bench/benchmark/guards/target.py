"""Whether the target is still the model that was loaded, for vanilla and for every decoder.

- A fingerprint of what its forwards read: every weight and buffer, packed copies included, every
  layer and its hooks, the configuration. It takes about as long as reading the weights twice.
- Vanilla's own answers to a few prompts, made before any decoder exists and asked again at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import ALL, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.engine.target import TransformersTarget

CHUNK = 1 << 20  # numbers that are summed at once
PARTS = (
    "model",
    "lm_head",
    "embedding",
    "fused",
    "stock",
    "trees",
    "attention",
    "logits",
    "team",
)
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class TargetGuard:
    """The target's fingerprint, and vanilla's answers to `prompts`, before any decoder is built."""

    def __init__(
        self, target: TransformersTarget, prompts: Sequence[list[int]], tokens: int
    ) -> None:
        self.target = target
        self.prompts = prompts
        self.limit = Limit(tokens)
        self.parts = list(parts(target))
        self.weights = dict(checksums(target))
        self.answers = self._answers()

    def changed(self) -> str:
        """Return what of the target is not as it was, empty where all is."""
        now = list(parts(self.target))
        if len(now) != len(self.parts):
            return "its layers"
        for (name, part), (_, known) in zip(now, self.parts, strict=True):
            if part is not known and part != known:
                return name
        weights = dict(checksums(self.target))
        names = self.weights.keys() | weights.keys()
        differing = sorted(n for n in names if self.weights.get(n) != weights.get(n))
        return f"its weights ({differing[0]})" if differing else ""

    def answers_otherwise(self) -> bool:
        """Ask the prompts again: whether vanilla says something else than at the start.

        Where it fails, its errors stand in the record already.
        """
        with suppress(Exception):
            return self._answers() != self.answers
        return False

    def _answers(self) -> list[list[int]]:
        return [
            generate(self.target, Vanilla(self.target), Sampler(), prompt, self.limit).tokens
            for prompt in self.prompts
        ]


def parts(target: TransformersTarget) -> Iterator[tuple[str, Any]]:
    """Yield the objects that a forward goes through, each with the words for it."""
    yield "its configuration", target.config.to_json_string()
    yield "its methods", sorted(vars(target).keys() & dir(type(target)))
    for name in PARTS:
        yield f"its part `{name}`", getattr(target, name)
    for module in target.model.modules():
        yield "its layers", module
        yield "its layers' hooks", (len(module._forward_hooks), len(module._forward_pre_hooks))
        yield "its layers' methods", "forward" in vars(module)
    if target.fused:
        yield "its layers", target.fused.chain(ALL)
        yield from (("its layers", layer) for layer in target.fused.layers)


def checksums(target: TransformersTarget) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and checksum of every tensor that a forward reads."""
    for name, tensor in target.model.state_dict(keep_vars=True).items():
        yield name, checksum(tensor)
    matrices = [("logits", target.logits)]
    for number, layer in enumerate(target.fused.layers if target.fused else []):
        named = zip(("qkv", "out", "gate_up", "down"), layer_matrices(layer), strict=True)
        matrices += [(f"{number}.{name}", matrix) for name, matrix in named]
    for name, matrix in matrices:
        if matrix.packed is not None:
            yield f"packed {name}", checksum(matrix.packed)


def layer_matrices(layer: Any) -> tuple[Any, ...]:
    return layer.qkv, layer.out, layer.gate_up, layer.down


@torch.inference_mode()
def checksum(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor, and two sums of its bits that no single change leaves alone.

    The second weighs a number by its place, so that numbers cannot change places either.
    """
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor  # this process's share
    flat = own.detach().reshape(-1).view(WORDS[tensor.element_size()])
    plain = torch.zeros((), dtype=torch.int64, device=tensor.device)
    placed = torch.zeros_like(plain)
    weights = torch.arange(1, min(len(flat), CHUNK) + 1, device=tensor.device)
    for number, chunk in enumerate(flat.split(CHUNK), start=1):
        bits = chunk.long()
        plain += bits.sum()
        placed += number * (bits * weights[: len(bits)]).sum()
    return (*tensor.shape, int(plain), int(placed))
