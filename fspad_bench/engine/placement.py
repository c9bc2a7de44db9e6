"""The devices of a target: one, or several over which its layers are spread or shared.

- The first device holds the embedding, the final norm and the LM head: whatever a step hands in or
  gets back lies there, and so do draft heads. A layer's cache entries lie with the layer.
- A spread model runs by transformers' own forward; hooks of accelerate move hidden states from one
  device to the next.
- A model whose layers are shared has each layer in part on every device (`team`).
- `cpu:0,cpu:1` is a rehearsal without GPUs: one processor under two names, so nothing moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from accelerate import dispatch_model
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from fspad_bench.util.errors import BenchError

DISK = "disk"  # where accelerate leaves what fits no device


@dataclass(frozen=True)
class Placement:
    """`first`: the device of embedding and LM head; `layers`: the device of each layer.

    `shares`: the devices among which the weights of each layer are shared, one a process.
    """

    first: torch.device
    layers: tuple[torch.device, ...]
    shares: tuple[torch.device, ...] = ()

    @classmethod
    def of(cls, model: PreTrainedModel, shares: tuple[torch.device, ...] = ()) -> Placement:
        """Read where a model lies. Raises BenchError where it cannot be a target as it lies."""
        if not shares and any(isinstance(weight, DTensor) for weight in model.parameters()):
            raise BenchError(
                "the model's weights are shared among processes that were started elsewhere",
                "name its devices and let the target be loaded: --device cuda:0+cuda:1",
            )
        first: torch.device = model.get_input_embeddings().weight.device
        stated: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
        if len(set(stated.values())) > 1:
            return _stated(model, {name: _place(name, place) for name, place in stated.items()})
        others = {parameter.device for parameter in model.parameters()}
        if len(others) > 1:
            raise _misplaced(f"its weights lie on {', '.join(sorted(map(str, others)))}")
        return cls(first, (first,) * len(model.base_model.layers), shares)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Its devices, the first one first, none twice."""
        return self.shares or self.own

    @property
    def own(self) -> tuple[torch.device, ...]:
        """Those of its devices that this process uses."""
        return tuple(dict.fromkeys((self.first, *self.layers)))

    @property
    def gpus(self) -> tuple[torch.device, ...]:
        return _gpus(self.devices)

    @property
    def own_gpus(self) -> tuple[torch.device, ...]:
        return _gpus(self.own)

    @property
    def is_single(self) -> bool:
        return len(self.devices) == 1

    @property
    def words(self) -> str:
        """What a forward's name says of several devices."""
        if self.is_single:
            return ""
        way = "each layer shared among" if self.shares else "spread over"
        return f", {way} {len(self.devices)} devices"

    def __str__(self) -> str:
        return ("+" if self.shares else ",").join(map(str, self.devices))


def _gpus(devices: Sequence[torch.device]) -> tuple[torch.device, ...]:
    return tuple(device for device in devices if device.type == "cuda")


def runs(devices: Sequence[torch.device]) -> Iterator[tuple[torch.device, int]]:
    """Yield each device with the number of layers, one after the other, that lie on it."""
    for device, group in groupby(devices):
        yield device, len(list(group))


def spread(model: PreTrainedModel, devices: Sequence[str]) -> dict[str, str]:
    """Return transformers' device map that shares a model's layers out evenly, by their bytes.

    The model may be without memory (on `meta`).
    """
    sizes = [_bytes(layer) for layer in model.base_model.layers]
    total = _bytes(model)
    placed = dict.fromkeys(_outside(model), devices[0])
    before = total - sum(sizes)  # embedding and LM head are on the first device
    for number, size in enumerate(sizes):
        middle = (before + size / 2) / total
        placed[_layer(model, number)] = devices[int(middle * len(devices))]
        before += size
    return placed


def spread_model(model: PreTrainedModel, devices: Sequence[str]) -> PreTrainedModel:
    """Spread a model that has its weights over several devices."""
    placed = spread(model, devices)
    if is_rehearsal(devices):
        model.hf_device_map = placed
        return model
    moved: PreTrainedModel = dispatch_model(model, placed)
    return moved


def is_rehearsal(devices: Sequence[str]) -> bool:
    """Whether all of several devices are names of one processor."""
    return len(devices) > 1 and all(torch.device(name).type == "cpu" for name in devices)


def _outside(model: PreTrainedModel) -> Iterator[str]:
    """Yield the names of all modules beside the layers."""
    for name, module in model.named_children():
        if module is not model.base_model:
            yield name
    for name, module in model.base_model.named_children():
        if module is not model.base_model.layers:
            yield f"{model.base_model_prefix}.{name}"


def _bytes(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())


def _stated(model: PreTrainedModel, stated: dict[str, torch.device]) -> Placement:
    """Return the placement that a device map states."""
    first = _device_of(f"{model.base_model_prefix}.embed_tokens", stated)
    for name in _outside(model):
        if _device_of(name, stated) != first:
            raise _misplaced(f"{name} lies on {_device_of(name, stated)}, the embedding on {first}")
    every = range(len(model.base_model.layers))
    return Placement(first, tuple(_device_of(_layer(model, number), stated) for number in every))


def _layer(model: PreTrainedModel, number: int) -> str:
    """Return the name of a layer in a device map."""
    return f"{model.base_model_prefix}.layers.{number}"


def _device_of(name: str, stated: dict[str, torch.device]) -> torch.device:
    """Return the device of a module: its own entry, or the nearest one above it."""
    while name not in stated:
        if not name:
            raise _misplaced("its device map does not name each of its modules")
        name = name.rpartition(".")[0]
    return stated[name]


def _place(name: str, place: Any) -> torch.device:
    """Return a device as transformers states it: its number, its name, or itself."""
    if place == DISK:
        raise _misplaced(f"{name} lies on {DISK}")
    return torch.device(place)


def _misplaced(reason: str) -> BenchError:
    return BenchError(
        f"the model lies on several devices as no target can: {reason}",
        "spread it by --device cuda:0,cuda:1, which keeps all but its layers on the first",
    )
